"""Gaussian policies with full or diagonal covariance."""

from safe_components.policies.distribution import CholeskyNormal
from safe_components.policies.gaussian import Covariance, GaussianNet, gaussian_policy

__all__ = ["CholeskyNormal", "Covariance", "GaussianNet", "gaussian_policy"]
