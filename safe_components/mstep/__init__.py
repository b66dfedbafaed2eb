"""The M-step: weighted maximum likelihood inside a trust region."""

from safe_components.mstep.any_policy import WeightedLikelihoodLoss
from safe_components.mstep.choice import mstep_loss
from safe_components.mstep.likelihood import DecoupledTerms, decoupled_terms, log_likelihood
from safe_components.mstep.loss import Likelihood, MStepLoss
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
    "Retraction",
    "SoftTrustRegion",
    "TrustRegionTerms",
    "WeightedLikelihoodLoss",
    "decoupled_terms",
    "log_likelihood",
    "mstep_loss",
]
