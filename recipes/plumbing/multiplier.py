"""Settings of a Lagrangian multiplier, and the multiplier they ask for."""

from __future__ import annotations

import dataclasses
from typing import Literal

from safe_components.lagrangian import GradientMultiplier, PIDMultiplier
from safe_components.training import RunConfig

__all__ = ["LagrangianConfig", "make_multiplier"]


@dataclasses.dataclass(frozen=True)
class LagrangianConfig(RunConfig):
    """A multiplier moved by the costs of the episodes just collected."""

    multiplier: Literal["gradient", "pid"] = "pid"
    """how it follows the cost: gradient ascent, or PID control"""
    multiplier_lr: float = 0.01
    """step size of gradient ascent, and the integral gain of PID control: multiplier per cost"""
    pid_kp: float = 0.02
    """proportional gain of PID control"""
    pid_kd: float = 0.02
    """derivative gain of PID control"""
    multiplier_init: float = 0.0
    """first value"""
    multiplier_max: float | None = None
    """upper bound; None for none"""


def make_multiplier(config: LagrangianConfig) -> GradientMultiplier | PIDMultiplier:
    """The multiplier ``config`` describes, for the limits of an episode."""
    common = {"init": config.multiplier_init, "max_value": config.multiplier_max}
    if config.multiplier == "gradient":
        return GradientMultiplier(config.cost_limit, config.multiplier_lr, **common)
    return PIDMultiplier(
        config.cost_limit, kp=config.pid_kp, ki=config.multiplier_lr, kd=config.pid_kd, **common
    )
