"""Sauté: the remaining share of the safety budget as a part of the observation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from safe_components.envs.budget_input import BudgetInput
from safe_components.ops import episode_limits, q_cost_limit

_ROUNDING = 1e-4  # share of the budget that sums of float32 may leave over


class Saute(BudgetInput):
    """Append the remaining safety budget to the observation, and withhold the reward once it is used up.

        z_0 = 1,      z_{t+1,i} = (z_{t,i} - c_{t,i} / d_γ,i) / γ
        r̃_t = r_t  if z_{t+1,i} > 0 for all i,  else  n            d_γ,i = d_i (1 - γ^T) / ((1 - γ) T)

    Spending the budget ends the reward, so a learner without a constraint has a reason to keep the limit, in
    each episode and not only on average. Nothing protects a budget that is already overdrawn: every later
    step earns ``n``, whatever it costs. With ``γ = 1``, ``z`` is the share of ``d`` that is left, and
    ``d_γ = d``.

    Writes ``budget_left``, ``z [..., m]``, appends it to ``observation``, and replaces ``reward [..., 1]``.
    The transform holds no state: ``budget_left`` travels with the steps, as the sums of TorchRL's
    ``RewardSum`` do. Frame skip, partial resets and batches therefore need nothing else. A ``RewardSum``
    before this transform adds up the environment's own reward.

    Args:
        cost_limits: ``d``, cost per episode, positive; one number, or one per cost.
        gamma: ``γ``, discount of the cost per decision, in ``(0, 1]``.
        episode_length: ``T``, number of decisions in an episode; needed if ``gamma`` is below 1.
        unsafe_reward: ``n``, reward of each step without budget. It must be below what a safe step earns.
            None keeps the environment's reward, to measure a policy.

    Raises:
        ValueError: if an argument is out of range, or if the environment has another number of costs.

    Source: Sootla et al. 2022, "Sauté RL: almost surely safe reinforcement learning using state
    augmentation", arXiv 2202.06558; the conversion of ``d`` to ``d_γ`` is that of its published code.

    Example:
        >>> from torchrl.envs import TransformedEnv
        >>> from safe_components.envs import make_env
        >>> env = TransformedEnv(make_env("PointCircle", seed=0), Saute(cost_limits=25.0))
        >>> steps = env.rollout(3)
        >>> steps["observation"].shape, steps["budget_left"].flatten()
        (torch.Size([3, 5]), tensor([1., 1., 1.]))
    """

    budget: Tensor

    def __init__(
        self,
        cost_limits: float | Sequence[float] | Tensor,
        *,
        gamma: float = 1.0,
        episode_length: int | None = None,
        unsafe_reward: float | None = 0.0,
    ) -> None:
        limits = episode_limits(cost_limits, "cost_limits")
        if not bool((limits > 0).all()):
            raise ValueError(
                f"cost_limits={limits.tolist()} must be positive: a budget of 0 is used up at once"
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma={gamma} must lie in (0, 1]")
        if gamma < 1 and episode_length is None:
            raise ValueError(f"gamma={gamma} needs episode_length, the number of decisions in an episode")
        if unsafe_reward is not None and not math.isfinite(unsafe_reward):
            raise ValueError(f"unsafe_reward={unsafe_reward} must be finite, or None")
        super().__init__("budget_left", len(limits))
        self.gamma, self.unsafe_reward = gamma, unsafe_reward
        budget = limits if episode_length is None else q_cost_limit(limits, gamma, episode_length)
        self.register_buffer("budget", budget.float())

    def first(self, shape: torch.Size) -> Tensor:
        """Return the whole budget, ones ``[..., m]``."""
        return self.budget.new_ones(shape)

    def shown(self, entry: Tensor) -> Tensor:
        """Return ``z`` as it is."""
        return entry

    def after(self, entry: Tensor, step: TensorDictBase) -> Tensor:
        """Return ``z`` after a step."""
        left: Tensor = (entry - step["cost"] / self.budget) / self.gamma
        return left

    def reward(self, entry: Tensor, reward: Tensor) -> Tensor:
        """Return the reward of a step that left ``z``."""
        if self.unsafe_reward is None:
            return reward
        return torch.where((entry > _ROUNDING).all(-1, keepdim=True), reward, self.unsafe_reward)
