"""Bringing a policy that has left the trust region back to its border."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_components.mstep.loss import MStepLoss


@torch.no_grad()
def retract(loss: MStepLoss, kl_mean: Tensor, kl_cov: Tensor, bound_mean: float, bound_cov: float) -> Tensor:
    """Shorten the way from the reference policy's parameters to the policy's, where it is too long.

        θ ← θ_old + s (θ - θ_old),    s = min(1, sqrt(ε_μ / C_μ), sqrt(ε_Σ / C_Σ))

    Near the reference both divergences are quadratic in ``θ - θ_old``, so that ``s`` brings the larger of
    them, in units of its bound, to that bound. No multiplier is needed, with `NoTrustRegion`; and none could
    do it: an Adam step has the same length however large the penalty, and once the standard deviation is
    small, one step may be more than the trust region holds.

    Args:
        loss: holds both sets of parameters; the policy's are changed in place.
        kl_mean: ``C_μ []``, as ``loss`` returned it.
        kl_cov: ``C_Σ []``, likewise.
        bound_mean: ``ε_μ``, nats, positive.
        bound_cov: ``ε_Σ``, nats, positive.

    Returns:
        ``s []``, in the dtype of the divergences: 1 where nothing was shortened. Not waited for on a GPU.

    Raises:
        ValueError: if a bound is not positive.

    Source: the quadratic model of the divergence and the scaled step are those of TRPO (Schulman et al. 2015,
    arXiv 1502.05477, appendix C), in place of its line search.

    Example:
        >>> from safe_components.mstep import NoTrustRegion
        >>> from safe_components.policies import gaussian_policy
        >>> from torchrl.objectives import HardUpdate
        >>> loss = MStepLoss(gaussian_policy(3, [-1.0], [1.0]), NoTrustRegion())
        >>> reference = HardUpdate(loss)  # π_old, as ever
        >>> retract(loss, torch.tensor(0.04), torch.tensor(0.0), 0.01, 0.001)
        tensor(0.5000)
    """
    if not min(bound_mean, bound_cov) > 0:
        raise ValueError(f"the bounds are {bound_mean} and {bound_cov}, must be positive (nats)")
    share = torch.minimum(bound_mean / kl_mean, bound_cov / kl_cov).clamp(max=1.0).sqrt()
    pairs = zip(
        loss.policy_params.values(True, True), loss.target_policy_params.values(True, True), strict=True
    )
    for new, old in pairs:
        new.lerp_(old.to(new.dtype), (1.0 - share).to(new.dtype))
    return share
