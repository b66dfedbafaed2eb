"""The M-step: weighted maximum likelihood inside a trust region."""

from safe_components.mstep.loss import Likelihood, MStepLoss
from safe_components.mstep.moments import (
    WhitenedMoments,
    decoupled_log_likelihood,
    joint_log_likelihood,
    whitened_moments,
)
from safe_components.mstep.trust_region import (
    HardTrustRegion,
    NoTrustRegion,
    SoftTrustRegion,
    TrustRegionTerms,
)

__all__ = [
    "HardTrustRegion",
    "Likelihood",
    "MStepLoss",
    "NoTrustRegion",
    "SoftTrustRegion",
    "TrustRegionTerms",
    "WhitenedMoments",
    "decoupled_log_likelihood",
    "joint_log_likelihood",
    "whitened_moments",
]
