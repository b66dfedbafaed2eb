"""Lagrangian multipliers moved by the episodes just collected, and the actor losses they weigh."""

from safe_components.lagrangian.actor_loss import PenalisedValue, augmented_multiplier
from safe_components.lagrangian.actor_loss_deterministic import DeterministicLagLoss
from safe_components.lagrangian.actor_loss_sac import SACLagLoss
from safe_components.lagrangian.multipliers import GradientMultiplier, PIDMultiplier

__all__ = [
    "DeterministicLagLoss",
    "GradientMultiplier",
    "PIDMultiplier",
    "PenalisedValue",
    "SACLagLoss",
    "augmented_multiplier",
]
