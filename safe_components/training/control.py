"""The multiplier of a recipe, and the measured cost that moves it."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from safe_components.lagrangian import Multiplier as LagrangeMultiplier
from safe_components.lagrangian import RunningEpisodeCost
from safe_components.training.options import CRPOConfig, Multiplier, PriceConfig, RecipeConfig
from safe_components.training.task import Task

__all__ = ["CostControl"]


class CostControl(nn.Module):
    """A multiplier that follows the costs of a run; calling it returns ``λ [m]``.

    A price (`PriceConfig`) has no unit. It moves with every batch of frames, by a running average of the cost
    over all steps, and holds it at a share of the limit. Any other multiplier is in reward per cost and moves
    by the episodes that have ended.

    Args:
        multiplier: settings of the multiplier, or of CRPO's switch.
        config: configuration of the recipe, for its limits and environments.
        task: environments of the run.
        frames_per_batch: frames between two calls of :meth:`observe`.

    Attributes:
        multiplier: the multiplier.
        in_spreads: whether the multiplier is a price.
    """

    multiplier: LagrangeMultiplier

    def __init__(
        self,
        multiplier: Multiplier | CRPOConfig,
        config: RecipeConfig,
        task: Task,
        frames_per_batch: int,
    ) -> None:
        super().__init__()
        limit, self._target = config.budget.cost_limit, 1.0
        self.in_spreads = isinstance(multiplier, PriceConfig)
        self.running_cost: RunningEpisodeCost | None = None
        if isinstance(multiplier, PriceConfig):
            frames = multiplier.memory / config.env.steps_per_action
            self.running_cost = RunningEpisodeCost(task.num_costs, task.episode_length, frames)
            self.multiplier, self._target = multiplier.make(limit, frames_per_batch), multiplier.target
        else:
            self.multiplier = multiplier.make(limit)

    def forward(self) -> Tensor:
        """Return a copy of the multipliers, ``[m]``."""
        lam: Tensor = self.multiplier()
        return lam

    def observe(self, cost_limit: Tensor, steps: TensorDictBase, episode_costs: Tensor) -> None:
        """Move the multiplier after a batch of frames.

        Args:
            cost_limit: present limits per episode ``[m]``.
            steps: the new steps ``[N, T]``.
            episode_costs: costs of the episodes that ended in them ``[n, m]``, ``n >= 0``.
        """
        self.multiplier.set_cost_limits(self._target * cost_limit)
        if self.running_cost is not None:
            self.multiplier.update(self.running_cost.update(steps))
        elif len(episode_costs):
            self.multiplier.update(episode_costs.mean(0))

    def metrics(self) -> dict[str, torch.Tensor]:
        """Return ``lambda_capped``, and ``price`` if the multiplier is one."""
        price = {"price": self.multiplier.lam} if self.in_spreads else {}
        return {"lambda_capped": self.multiplier.clipped} | price
