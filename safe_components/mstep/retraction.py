"""Retraction: bring a policy that has left the trust region back to its border."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_components.mstep.any_policy import WeightedLikelihoodLoss
from safe_components.mstep.loss import MStepLoss
from safe_components.mstep.trust_region import require_bounds


class Retraction:
    """Shorten the step from the reference policy's parameters to the policy's if it is too long.

        θ ← θ_old + s (θ - θ_old),    s = min(1, sqrt(ε_μ / C_μ), sqrt(ε_Σ / C_Σ))

    Near the reference both divergences are quadratic in ``θ - θ_old``. So ``s`` brings the one that exceeds
    its bound by the larger factor back to that bound. Use it with `NoTrustRegion`: no multiplier is needed.
    A multiplier could not do this. An Adam step has the same length however large the penalty, and once the
    standard deviation is small, one step can leave the trust region.

    Args:
        loss: holds both sets of parameters. The policy's are changed in place.
        kl_mean: ``ε_μ``, bound on the divergence caused by the mean, in nats, mean over states. With
            `WeightedLikelihoodLoss`, the bound on the whole divergence.
        kl_cov: ``ε_Σ``, bound on the divergence caused by the covariance, in nats, mean over states.

    Raises:
        ValueError: if a bound is not positive and finite.

    Source: the quadratic model of the divergence and the scaled step are those of TRPO (Schulman et al. 2015,
    arXiv 1502.05477, appendix C). Its line search is left out.

    Example:
        >>> from safe_components.mstep import MStepLoss, NoTrustRegion
        >>> from safe_components.policies import gaussian_policy
        >>> from torchrl.objectives import HardUpdate
        >>> loss = MStepLoss(gaussian_policy(3, [-1.0], [1.0]), NoTrustRegion())
        >>> reference = HardUpdate(loss)  # π_old
        >>> retraction = Retraction(loss, kl_mean=0.01, kl_cov=0.001)
        >>> retraction.step(torch.tensor(0.04), torch.tensor(0.0))  # after the optimizer's step
        tensor(0.5000)
    """

    def __init__(self, loss: MStepLoss | WeightedLikelihoodLoss, kl_mean: float, kl_cov: float) -> None:
        require_bounds(kl_mean, kl_cov)
        self.loss, self.kl_mean, self.kl_cov = loss, kl_mean, kl_cov

    @torch.no_grad()
    def step(self, kl_mean: Tensor, kl_cov: Tensor | None = None) -> Tensor:
        """Shorten the step, given ``C_μ []`` and ``C_Σ []`` as the loss returned them.

        Args:
            kl_mean: ``C_μ``, or the whole divergence.
            kl_cov: ``C_Σ``; None if the first is the whole divergence.

        Returns:
            ``s []``, in their dtype; 1 if nothing was shortened. The host does not wait for a GPU.
        """
        room = self.kl_mean / kl_mean
        if kl_cov is not None:
            room = torch.minimum(room, self.kl_cov / kl_cov)
        share = room.clamp(max=1.0).sqrt()
        new, old = self.loss.policy_params, self.loss.target_policy_params
        for parameter, start in zip(new.values(True, True), old.values(True, True), strict=True):
            parameter.lerp_(start.to(parameter.dtype), (1.0 - share).to(parameter.dtype))
        return share
