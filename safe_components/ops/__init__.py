"""For every part: aggregates, bounds, budget, imports, losses, networks, noise, squashing, temperatures."""

from safe_components.ops.aggregate import Aggregate, aggregate
from safe_components.ops.base_loss import (
    BaseLoss,
    Reduction,
    differentiated,
    reduced,
    require_states,
    transformed,
)
from safe_components.ops.bounds import action_bounds, episode_limits, q_limits
from safe_components.ops.cost_budget import q_cost_limit
from safe_components.ops.gaussian_kl import gaussian_kl
from safe_components.ops.import_part import import_module, import_part, is_import_path
from safe_components.ops.networks import (
    has_distribution,
    is_gaussian,
    network_outputs,
    single_network,
    swapped,
)
from safe_components.ops.noise import noise_from, standard_normal
from safe_components.ops.squash import Squash, squash_of
from safe_components.ops.temperature import Temperature
from safe_components.ops.triton import runs_triton

__all__ = [
    "Aggregate",
    "BaseLoss",
    "Reduction",
    "Squash",
    "Temperature",
    "action_bounds",
    "aggregate",
    "differentiated",
    "episode_limits",
    "gaussian_kl",
    "has_distribution",
    "import_module",
    "import_part",
    "is_gaussian",
    "is_import_path",
    "network_outputs",
    "noise_from",
    "q_cost_limit",
    "q_limits",
    "reduced",
    "require_states",
    "runs_triton",
    "single_network",
    "squash_of",
    "standard_normal",
    "swapped",
    "transformed",
]
