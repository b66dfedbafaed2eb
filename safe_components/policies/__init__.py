"""Policies: Gaussian with full or diagonal covariance, squashed Gaussian, deterministic."""

from safe_components.policies.deterministic import TanhBounds, deterministic_policy
from safe_components.policies.distribution import CholeskyNormal
from safe_components.policies.gaussian import Covariance, GaussianNet, gaussian_policy
from safe_components.policies.tanh_gaussian import tanh_gaussian_policy

__all__ = [
    "CholeskyNormal",
    "Covariance",
    "GaussianNet",
    "TanhBounds",
    "deterministic_policy",
    "gaussian_policy",
    "tanh_gaussian_policy",
]
