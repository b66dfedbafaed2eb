"""Policies: Gaussian with full or diagonal covariance, squashed or not, deterministic, categorical."""

from safe_components.policies.cnn_encoder import CnnEncoder, cnn_encoder
from safe_components.policies.deployed import DeployedPolicy
from safe_components.policies.deterministic import TanhBounds, deterministic_policy
from safe_components.policies.distribution import CholeskyNormal
from safe_components.policies.encoder import Encoder, encoded_policy, make_encoder
from safe_components.policies.gaussian import Covariance, GaussianNet, gaussian_policy
from safe_components.policies.grid import GridCategorical, enumerated_policy, grid_actions, grid_policy
from safe_components.policies.registry import build_policy, policy_builder, policy_description
from safe_components.policies.squashed_normal import SquashedNormal
from safe_components.policies.tanh_gaussian import tanh_gaussian_policy

__all__ = [
    "CholeskyNormal",
    "CnnEncoder",
    "Covariance",
    "DeployedPolicy",
    "Encoder",
    "GaussianNet",
    "GridCategorical",
    "SquashedNormal",
    "TanhBounds",
    "build_policy",
    "cnn_encoder",
    "deterministic_policy",
    "encoded_policy",
    "enumerated_policy",
    "gaussian_policy",
    "grid_actions",
    "grid_policy",
    "make_encoder",
    "policy_builder",
    "policy_description",
    "tanh_gaussian_policy",
]
