"""The cost limit of an episode as a part of the observation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from safe_components.envs.budget_input import BudgetInput
from safe_components.ops import episode_limits


class SampledLimit(BudgetInput):
    """Draw a cost limit for each episode, and append it to the observation.

        d_i ~ U[low_i, high_i] at each reset,      shown as  (d_i - low_i) / (high_i - low_i)

    A policy that is trained so keeps any limit of the range afterwards. The learner must hold each step to
    ``cost_limit``, the limit of its own episode; `safe_components.lagrangian.LimitPrices` does.

    Writes ``cost_limit``, ``d [..., m]``, cost per episode, and appends the share of the range to
    ``observation``. The transform holds no state: ``cost_limit`` travels with the steps. The draws come from
    PyTorch's global generator.

    Args:
        low: smallest limits, cost per episode, one number, or one per cost.
        high: largest limits, above ``low``.
        limit: limits of all episodes, in place of a draw, for example to measure a policy; they may lie
            outside the range.

    Raises:
        ValueError: if an argument is out of range, or if the environment has another number of costs.

    Source: the limit as an input of the policy, Yao et al. 2023, "Constraint-conditioned policy optimization
    for versatile safe reinforcement learning", arXiv 2310.03718.

    Example:
        >>> from torchrl.envs import TransformedEnv
        >>> from safe_components.envs import make_env
        >>> env = TransformedEnv(make_env("PointCircle", seed=0), SampledLimit(5.0, 75.0, limit=40.0))
        >>> steps = env.rollout(3)
        >>> steps["cost_limit"].flatten(), steps["observation"][:, -1]
        (tensor([40., 40., 40.]), tensor([0.5000, 0.5000, 0.5000]))
    """

    low: Tensor
    high: Tensor
    limit: Tensor | None

    def __init__(
        self,
        low: float | Sequence[float] | Tensor,
        high: float | Sequence[float] | Tensor,
        *,
        limit: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        ends = {"low": episode_limits(low, "low"), "high": episode_limits(high, "high")}
        if limit is not None:
            ends["limit"] = episode_limits(limit, "limit")
        if len({len(values) for values in ends.values()}) > 1:
            sizes = ", ".join(f"{name}={values.tolist()}" for name, values in ends.items())
            raise ValueError(f"{sizes} must have one limit per cost each")
        if not bool((ends["low"] < ends["high"]).all()):
            raise ValueError(f"low={ends['low'].tolist()} must be below high={ends['high'].tolist()}")
        super().__init__("cost_limit", len(ends["low"]))
        for name in ("low", "high", "limit"):
            values = ends.get(name)
            self.register_buffer(name, None if values is None else values.float())

    def first(self, shape: torch.Size) -> Tensor:
        """Return the limits of new episodes ``[..., m]``."""
        if self.limit is not None:
            return self.limit.expand(shape).clone()
        draw = torch.rand(shape, device=self.low.device)
        return torch.lerp(self.low.expand(shape), self.high.expand(shape), draw)

    def shown(self, entry: Tensor) -> Tensor:
        """Return the share of the range."""
        return (entry - self.low) / (self.high - self.low)

    def after(self, entry: Tensor, step: TensorDictBase) -> Tensor:
        """Return the same limits, because they hold for the whole episode."""
        return entry.clone()

    def reward(self, entry: Tensor, reward: Tensor) -> Tensor:
        """Return the environment's reward."""
        return reward
