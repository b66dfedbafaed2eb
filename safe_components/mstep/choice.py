"""The M-step that fits a policy: that of Gaussians, or that of any policy with a distribution."""

from __future__ import annotations

from typing import Any

from torch import nn

from safe_components.mstep.any_policy import WeightedLikelihoodLoss
from safe_components.mstep.loss import Likelihood, MStepLoss
from safe_components.ops import has_distribution, is_gaussian


def mstep_loss(
    policy: Any,
    trust_region: nn.Module,
    *,
    likelihood: Likelihood = "decoupled",
    check_weights: bool | None = None,
) -> MStepLoss | WeightedLikelihoodLoss:
    """Return the loss of the M-step for a policy.

    A Gaussian that writes ``loc`` and ``scale_tril`` gets `MStepLoss`, which is fast and bounds mean and
    covariance separately. Every other policy with a distribution gets `WeightedLikelihoodLoss`, which bounds
    the whole divergence. Both have ``prepare``, and ``divergences`` names what each one bounds.

    Args:
        policy: TorchRL actor.
        trust_region: as in both losses.
        likelihood: as in `MStepLoss`, for Gaussians; that of any other policy is joint.
        check_weights: as in `MStepLoss`, for Gaussians.

    Raises:
        TypeError: if the policy is neither; the message says what it lacks.

    Example:
        >>> from safe_components.mstep import NoTrustRegion
        >>> from safe_components.policies import tanh_gaussian_policy
        >>> mstep_loss(tanh_gaussian_policy(3, [-1.0], [1.0]), NoTrustRegion()).divergences
        ('kl',)
    """
    if is_gaussian(policy):
        return MStepLoss(policy, trust_region, likelihood=likelihood, check_weights=check_weights)
    if has_distribution(policy):
        return WeightedLikelihoodLoss(policy, trust_region)
    raise TypeError(
        f"the M-step needs the probability of an action, but a {type(policy).__name__} that writes "
        f"{list(getattr(policy, 'out_keys', []))} has none: it must be a Gaussian that writes loc and "
        "scale_tril, or an actor with a distribution (get_dist), such as TorchRL's ProbabilisticActor"
    )
