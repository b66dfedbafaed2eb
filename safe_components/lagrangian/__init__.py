"""Lagrangian multipliers moved by the episodes just collected."""

from safe_components.lagrangian.multipliers import GradientMultiplier, PIDMultiplier

__all__ = ["GradientMultiplier", "PIDMultiplier"]
