"""Lagrangian multipliers that follow measured episodes, the cost budget, and the actor losses they weigh."""

from safe_components.lagrangian.actor_loss import LagrangianActorLoss, PenalizedValue, augmented_multiplier
from safe_components.lagrangian.budget import CostBudget
from safe_components.lagrangian.crpo import CRPOSwitch
from safe_components.lagrangian.deterministic import DeterministicLagLoss
from safe_components.lagrangian.focops import FOCOPSLoss
from safe_components.lagrangian.limit_prices import LimitPrices
from safe_components.lagrangian.multipliers import (
    MAX_MULTIPLIER,
    ExponentiatedMultiplier,
    GradientMultiplier,
    Multiplier,
    PIDMultiplier,
)
from safe_components.lagrangian.running_cost import RunningEpisodeCost
from safe_components.lagrangian.sac import SACLagLoss

__all__ = [
    "MAX_MULTIPLIER",
    "CRPOSwitch",
    "CostBudget",
    "DeterministicLagLoss",
    "ExponentiatedMultiplier",
    "FOCOPSLoss",
    "GradientMultiplier",
    "LagrangianActorLoss",
    "LimitPrices",
    "Multiplier",
    "PIDMultiplier",
    "PenalizedValue",
    "RunningEpisodeCost",
    "SACLagLoss",
    "augmented_multiplier",
]
