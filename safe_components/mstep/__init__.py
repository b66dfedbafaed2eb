"""The M-step: weighted maximum likelihood inside a trust region."""

from safe_components.mstep.loss import Likelihood, MStepLoss
from safe_components.mstep.moments import (
    WhitenedMoments,
    joint_log_likelihood,
    whitened_moments,
)
from safe_components.mstep.objective import DecoupledTerms, OldPolicy, decoupled_terms
from safe_components.mstep.retraction import Retraction
from safe_components.mstep.trust_region import (
    HardTrustRegion,
    NoTrustRegion,
    SoftTrustRegion,
    TrustRegionTerms,
)

__all__ = [
    "DecoupledTerms",
    "HardTrustRegion",
    "Likelihood",
    "MStepLoss",
    "NoTrustRegion",
    "OldPolicy",
    "Retraction",
    "SoftTrustRegion",
    "TrustRegionTerms",
    "WhitenedMoments",
    "decoupled_terms",
    "joint_log_likelihood",
    "whitened_moments",
]
