"""The size of the values that critics of a task will have, estimated before they learn."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from safe_components import keys
from safe_components.ops import q_cost_limit

__all__ = ["value_units"]


def value_units(
    steps: TensorDictBase, cost_limit: tuple[float, ...], gamma: float, episode_length: int
) -> dict[str, Tensor]:
    """Return the unit of the values of the reward ``[1]`` and of the costs ``[m]``.

    The unit of the reward is the value of a reward of root mean square ``r``, earned in every step. The unit
    of a cost is its limit as a value. Both are proportional to what they measure, so nothing that a critic
    learns depends on the units of a task.

        u_r = r (1 - γ^T) / (1 - γ)        u_c = d (1 - γ^T) / ((1 - γ) T)

    A limit of zero is replaced by the root mean square of the cost, as for the reward. Where that is zero,
    too, the unit is 1.

    Args:
        steps: steps of random actions, of any batch size.
        cost_limit: ``d``, cost per episode, one per cost signal.
        gamma: ``γ``, discount of a decision.
        episode_length: ``T``, number of decisions in an episode.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> signals = TensorDict(reward=torch.full((4, 1), 2.0), cost=torch.zeros(4, 1))
        >>> value_units(TensorDict(next=signals), (25.0,), gamma=0.99, episode_length=500)["cost"]
        tensor([4.9671])
    """
    length = float(q_cost_limit(1.0, gamma, episode_length)) * episode_length
    limit = q_cost_limit(cost_limit, gamma, episode_length)
    reward, cost = (_root_mean_square(steps[key]) * length for key in (keys.REWARD, keys.COST))
    cost = torch.where(limit.to(cost) > 0, limit.to(cost), cost)
    return {"reward": torch.where(reward > 0, reward, 1.0), "cost": torch.where(cost > 0, cost, 1.0)}


def _root_mean_square(x: Tensor) -> Tensor:
    return x.flatten(0, -2).square().mean(0).sqrt()
