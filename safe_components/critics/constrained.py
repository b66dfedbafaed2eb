"""Critics of a constrained problem: one call returns the values of the reward and of the costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from safe_components.critics.q_ensemble import QEnsemble


class CriticPair(nn.Module):
    """A reward critic and a cost critic as one: ``(s, a) ↦ (Q_r(s, a), Q_c(s, a))``.

    Args:
        reward: module ``(observation [..., o], action [..., (K,) a]) -> [E_r, ..., (K,) 1]``.
        cost: module with the same arguments ``-> [E_c, ..., (K,) m]``.

    Example:
        >>> import torch
        >>> critic = CriticPair(QEnsemble(3, 2, num_members=2), QEnsemble(3, 2, num_members=1, num_outputs=4))
        >>> q_reward, q_cost = critic(torch.randn(5, 3), torch.randn(5, 64, 2))
        >>> q_reward.shape, q_cost.shape
        (torch.Size([2, 5, 64, 1]), torch.Size([1, 5, 64, 4]))
    """

    def __init__(self, reward: nn.Module, cost: nn.Module) -> None:
        super().__init__()
        self.reward, self.cost = reward, cost

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``q_reward [E_r, ..., (K,) 1]`` and ``q_cost [E_c, ..., (K,) m]``."""
        return self.reward(observation, action), self.cost(observation, action)


class ConstrainedQEnsemble(nn.Module):
    """A `CriticPair` of two `QEnsemble`, computed as one ensemble with one batched product per layer.

    The first ``E_r`` members of the ensemble score the reward, the others the ``m`` costs. All members have
    ``max(m, 1)`` outputs, and a reward member uses only its first one. Unused outputs contribute neither
    error nor gradient, because the call slices them off.

    Args:
        obs_dim: size ``o`` of an observation.
        action_dim: size ``a`` of an action.
        num_reward_members: number ``E_r`` of members for the reward, at least 1.
        num_cost_members: number ``E_c`` of members for the costs, at least 1.
        num_costs: number ``m`` of costs. With 0 costs no cost member is made, and ``q_cost`` has no elements.
        options: further arguments of `QEnsemble`.

    Raises:
        ValueError: if a size is too small, or the bounds do not match.

    Example:
        >>> import torch
        >>> critic = ConstrainedQEnsemble(3, 2, num_reward_members=2, num_cost_members=1, num_costs=4)
        >>> q_reward, q_cost = critic(torch.randn(5, 3), torch.randn(5, 64, 2))
        >>> q_reward.shape, q_cost.shape
        (torch.Size([2, 5, 64, 1]), torch.Size([1, 5, 64, 4]))
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_reward_members: int,
        num_cost_members: int,
        num_costs: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        least = {"num_reward_members": 1, "num_cost_members": 1, "num_costs": 0}
        for (name, minimum), size in zip(
            least.items(), (num_reward_members, num_cost_members, num_costs), strict=True
        ):
            if size < minimum:
                raise ValueError(f"{name}={size} must be at least {minimum}")
        self.num_reward_members, self.num_cost_members = num_reward_members, num_cost_members
        self.num_costs = num_costs
        members = num_reward_members + (num_cost_members if num_costs else 0)
        self.ensemble = QEnsemble(obs_dim, action_dim, members, max(num_costs, 1), **options)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``q_reward [E_r, ..., (K,) 1]`` and ``q_cost [E_c, ..., (K,) m]``."""
        value: Tensor = self.ensemble(observation, action)
        if not self.num_costs:
            return value, value.new_empty(self.num_cost_members, *value.shape[1:-1], 0)
        q_reward, q_cost = torch.split(value, [self.num_reward_members, self.num_cost_members])
        return q_reward[..., :1], q_cost

    @torch.no_grad()
    def set_units(self, reward: Tensor, cost: Tensor) -> None:
        """Set the size of a value that the networks have as their unit.

        Args:
            reward: ``[1]``, positive.
            cost: ``[m]``, positive.
        """
        unit, members = self.ensemble.unit, self.num_reward_members
        unit[:members, 0, :1] = reward.to(unit)
        if self.num_costs:
            unit[members:, 0] = cost.to(unit)
