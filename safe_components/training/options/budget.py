"""The cost limit, and multipliers that follow the cost of episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import tyro

from safe_components.lagrangian import (
    MAX_MULTIPLIER,
    CostBudget,
    CRPOSwitch,
    ExponentiatedMultiplier,
    GradientMultiplier,
    LimitPrices,
    PIDMultiplier,
)
from safe_components.training.options.ranges import Count, Limits, NotNegative, Positive, PositiveShare

__all__ = [
    "BudgetConfig",
    "CRPOConfig",
    "FeedbackBudgetConfig",
    "GradientConfig",
    "Multiplier",
    "PIDConfig",
    "PriceConfig",
]


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """A multiplier that gradient ascent moves, from the costs of the episodes just collected."""

    lr: Positive = 0.01
    """step size, in multiplier per cost"""
    init: NotNegative = 0.0
    """initial value of the multiplier"""
    max: Positive | None = MAX_MULTIPLIER
    """upper bound of the multiplier, which keeps it from winding up; None for no bound"""

    def make(self, cost_limit: tuple[float, ...]) -> GradientMultiplier:
        """Make the multiplier for these limits on the cost of an episode."""
        return GradientMultiplier(cost_limit, self.lr, init=self.init, max_value=self.max)


@dataclasses.dataclass(frozen=True)
class PIDConfig:
    """A multiplier that a PID controller moves, from the costs of the episodes just collected."""

    kp: NotNegative = 0.02
    """proportional gain, in multiplier per cost"""
    ki: NotNegative = 0.01
    """integral gain, in multiplier per cost and update"""
    kd: NotNegative = 0.02
    """derivative gain, in multiplier per cost"""
    init: NotNegative = 0.0
    """initial value of the multiplier"""
    max: Positive | None = MAX_MULTIPLIER
    """upper bound of the multiplier, which keeps it from winding up; None for no bound"""

    def make(self, cost_limit: tuple[float, ...]) -> PIDMultiplier:
        """Make the multiplier for these limits on the cost of an episode."""
        return PIDMultiplier(
            cost_limit, kp=self.kp, ki=self.ki, kd=self.kd, init=self.init, max_value=self.max
        )


@dataclasses.dataclass(frozen=True)
class PriceConfig:
    """A price of the costs in spreads, whose logarithm follows the measured cost; no setting has a unit."""

    rate: Positive = 0.03
    """change of the logarithm of the price per 1,000 frames at e = 2.7 times the limit"""
    kp: NotNegative = 0.5
    """change of the logarithm of the price at e times the limit, while the cost is there"""
    init: Positive = 0.3
    """initial value of the integral; 1 weighs a cost like the reward"""
    min: Positive = 0.1
    """lower bound of the integral"""
    max: Positive = 1.5
    """upper bound of the price"""
    memory: Positive = 5_000.0
    """frames over which the measured cost is averaged"""
    target: PositiveShare = 0.8
    """share of the limit at which the price holds the cost; the cost fluctuates around it"""

    def make(self, cost_limit: tuple[float, ...], frames_per_batch: int) -> ExponentiatedMultiplier:
        """Make the multiplier for these limits on the cost of an episode, for one update per batch."""
        rate = self.rate * frames_per_batch / 1000
        bounds = {"min_value": self.min, "max_value": self.max}
        target = [self.target * limit for limit in cost_limit]
        return ExponentiatedMultiplier(target, rate, self.kp, init=self.init, **bounds)

    def make_range(
        self, low: Sequence[float], high: Sequence[float], frames_per_batch: int, episode_frames: int
    ) -> LimitPrices:
        """Make the prices for a range of limits on the cost of an episode, for one update per batch."""
        knots = 4
        return LimitPrices(
            low,
            high,
            knots=knots,
            memory=self.memory / (knots * episode_frames),
            rate=self.rate * frames_per_batch / 1000,
            kp=self.kp,
            init=self.init,
            min_value=self.min,
            max_value=self.max,
        )


@dataclasses.dataclass(frozen=True)
class CRPOConfig:
    """CRPO, not a multiplier: raise the reward while the costs keep their limits, else lower a cost."""

    tolerance: NotNegative = 0.0
    """cost of an episode over the limit that does not switch to the cost yet"""

    def make(self, cost_limit: tuple[float, ...]) -> CRPOSwitch:
        """Make the switch for these limits on the cost of an episode."""
        return CRPOSwitch(cost_limit, self.tolerance)


Multiplier: TypeAlias = PriceConfig | PIDConfig | GradientConfig


@dataclasses.dataclass(frozen=True)
class BudgetConfig:
    """The cost limit, and how it changes during training."""

    cost_limit: Annotated[Limits, tyro.conf.arg(prefix_name=False)] = (25.0,)
    """largest expected cost of an episode (undiscounted sum), one limit per cost signal; none for no cost"""
    start: Limits = ()
    """initial limits, which fall linearly to cost_limit; empty for constant limits"""
    decay_frames: Count = 50_000
    """number of frames after which the limits have reached cost_limit"""

    def make(
        self,
        gamma: float = 1.0,
        episode_length: int = 1,
        feedback: GradientMultiplier | PIDMultiplier | None = None,
    ) -> CostBudget:
        """Make the budget.

        With the default ``gamma`` and ``episode_length`` the limit in Q units is the limit per episode.

        Args:
            gamma: discount of the critics.
            episode_length: number of decisions in an episode.
            feedback: multiplier that tightens the limit in Q units; None if no multiplier does.
        """
        return CostBudget(
            self.cost_limit,
            gamma=gamma,
            episode_length=episode_length,
            start=self.start or None,
            decay_frames=self.decay_frames,
            feedback=feedback,
        )


@dataclasses.dataclass(frozen=True)
class FeedbackBudgetConfig(BudgetConfig):
    """The cost limit, how it changes during training, and how measured episodes tighten it."""

    feedback: PIDConfig | GradientConfig | None = None
    """divide the limit in Q units by 1 + λ, where λ follows the cost of episodes; none does not divide it"""

    def make_feedback(self) -> GradientMultiplier | PIDMultiplier | None:
        """Make the multiplier that tightens the limit; return None if the group has no feedback."""
        return None if self.feedback is None else self.feedback.make(self.cost_limit)
