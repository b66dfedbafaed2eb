"""The multipliers of a recipe, and the measured cost that moves them."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from safe_components import keys
from safe_components.lagrangian import Multiplier as LagrangeMultiplier
from safe_components.lagrangian import RunningEpisodeCost
from safe_components.training.exploration import constrained_steps
from safe_components.training.options import CRPOConfig, Multiplier, PriceConfig, RecipeConfig
from safe_components.training.task import Task

__all__ = ["CostControl", "RangeControl"]


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
        steps = constrained_steps(steps)
        if not len(steps):
            return
        if self.running_cost is not None:
            self.multiplier.update(self.running_cost.update(steps))
        elif len(episode_costs):
            self.multiplier.update(episode_costs.mean(0))

    def metrics(self) -> dict[str, torch.Tensor]:
        """Return ``lambda_capped``, and ``price`` if the multiplier is one."""
        price = {"price": self.multiplier.lam} if self.in_spreads else {}
        return {"lambda_capped": self.multiplier.clipped} | price


class RangeControl(nn.Module):
    """Prices for a run in which each episode has a limit of its own (``env.limits``).

    They hold the costs at a share of the limits, ``multiplier.target``, as the price of one limit does.

    Args:
        multiplier: settings of the price.
        config: configuration of the recipe, for its limits and environments.
        task: environments of the run.
        frames_per_batch: frames between two calls of :meth:`observe`.

    Attributes:
        prices: `LimitPrices`, a price for each limit of the range.
        in_spreads: true, because they are prices.

    Raises:
        ValueError: if the multiplier is not a price.
    """

    in_spreads = True

    def __init__(self, multiplier: object, config: RecipeConfig, task: Task, frames_per_batch: int) -> None:
        super().__init__()
        if not isinstance(multiplier, PriceConfig):
            raise ValueError("env.limits needs a price for each limit: use --multiplier price")
        low, high = ([end] * task.num_costs for end in config.env.limits)
        self._target = multiplier.target
        frames = task.episode_length * config.env.steps_per_action
        self.prices = multiplier.make_range(low, high, frames_per_batch, frames)

    def forward(self, steps: TensorDictBase) -> Tensor:
        """Return the price of each step by the limit of its episode, ``[..., m]``."""
        price: Tensor = self.prices(steps["cost_limit"])
        return price

    def observe(self, steps: TensorDictBase) -> None:
        """Move the prices by the episodes that ended in the new steps ``[N, T]``."""
        ended = steps[keys.DONE].squeeze(-1)
        # A cost at the target's share of its limit leaves the price as it is.
        self.prices.update(steps["cost_limit"][ended], steps[keys.EPISODE_COST][ended] / self._target)

    def metrics(self) -> dict[str, torch.Tensor]:
        """Return ``lambda_capped`` and ``price``, means over the knots ``[m]``."""
        knots = self.prices.knots
        capped, price = self.prices.prices.clipped.view(knots, -1), self.prices.prices.lam.view(knots, -1)
        return {"lambda_capped": capped.double().mean(0), "price": price.mean(0)}
