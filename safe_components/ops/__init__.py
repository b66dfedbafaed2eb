"""Pure functions that every room may use: Gaussian KL, E-step dual, cost budget, aggregates, networks."""

from safe_components.ops.aggregate import Aggregate, aggregate
from safe_components.ops.bounds import action_bounds, episode_limits, q_limits
from safe_components.ops.cost_budget import q_cost_limit
from safe_components.ops.dual import (
    DualProblem,
    DualTerms,
    dual_problem,
    dual_terms,
    dual_value,
    dual_weight,
)
from safe_components.ops.gaussian_kl import gaussian_kl
from safe_components.ops.networks import network_outputs, single_network, swapped

__all__ = [
    "Aggregate",
    "DualProblem",
    "DualTerms",
    "action_bounds",
    "aggregate",
    "dual_problem",
    "dual_terms",
    "dual_value",
    "dual_weight",
    "episode_limits",
    "gaussian_kl",
    "network_outputs",
    "q_cost_limit",
    "q_limits",
    "single_network",
    "swapped",
]
