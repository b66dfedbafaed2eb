"""Bad input of a dual solver, named before any work starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_components.ops.dual import DualProblem


def check_shapes(
    q_reward: Tensor,
    q_cost: Tensor,
    cost_limits: float | Tensor,
    log_prior: Tensor | None,
    infeasible: str,
) -> None:
    """One clear error for an E-step whose pieces do not fit together; reads no values."""
    if infeasible not in ("recover", "clip"):
        raise ValueError(f"infeasible={infeasible!r} is not one of 'recover', 'clip'")
    if q_reward.ndim < 2 or q_reward.shape[-1] < 2:
        raise ValueError(f"q_reward must be [..., B, K] with K >= 2 particles, got {tuple(q_reward.shape)}")
    if q_cost.shape[:-1] != q_reward.shape:
        raise ValueError(
            f"q_cost must be [..., B, K, m] beside q_reward {tuple(q_reward.shape)}, "
            f"got {tuple(q_cost.shape)}"
        )
    if log_prior is not None and log_prior.shape != q_reward.shape:
        raise ValueError(
            f"log_prior must have the shape of q_reward, {tuple(q_reward.shape)}, "
            f"got {tuple(log_prior.shape)}"
        )
    m = q_cost.shape[-1]
    limits = torch.as_tensor(cost_limits).shape
    if (limits[-1] if limits else 1) != m:
        raise ValueError(f"cost_limits of shape {tuple(limits)} do not fit q_cost's m = {m} costs")


def check_values(problem: DualProblem) -> None:
    """One clear error for values that no E-step can have."""
    # One question to the device where all is well. What is not finite is not finite in a sum either.
    asked = (problem.features.sum(), problem.epsilon, problem.cost_limits)
    total, *settings = torch.cat([value.reshape(-1) for value in asked]).tolist()
    radii, limits = settings[: problem.epsilon.numel()], settings[problem.epsilon.numel() :]
    if math.isfinite(total) and all(r > 0 for r in radii) and all(limit >= 0 for limit in limits):
        return
    if not bool((problem.epsilon > 0).all()):
        raise ValueError(f"epsilon={problem.epsilon.tolist()} must be positive (nats)")
    if not bool((problem.cost_limits >= 0).all()):
        raise ValueError(f"cost_limits={problem.cost_limits.tolist()} must be at least 0 (Q units)")
    columns = problem.features.isfinite().movedim(-3, 0).flatten(1).all(1)
    if bool(columns.all()):  # only their sum overflows
        return
    bad = int(columns.logical_not().nonzero()[0])
    name = "q_reward" if bad == 0 else f"q_cost[..., {bad - 1}]"
    raise ValueError(f"{name} holds values that are not finite")
