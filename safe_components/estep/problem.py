"""The E-step as a dual problem, in the units of the estimates and in units of their spreads."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from safe_components.ops import require_states

# A spread below this share of the estimates' size is rounding, not a preference between actions.
_NO_SPREAD = 1e-13
# A prior that is nearly certain of one action leaves almost no variance. The spread is at least this share of
# the deviation that all allowed actions have with equal probabilities.
_LEAST_SPREAD = 1e-6


class DualProblem(NamedTuple):
    """The data of the dual function; leading dimensions ``...`` hold independent problems."""

    features: Tensor
    """``[..., 1 + m, B, K]``: the reward estimate, then the ``m`` cost estimates."""
    log_prior: Tensor | None
    """``[..., B, K]``, normalized over ``K``; ``None`` is the uniform ``-log K``."""
    epsilon: Tensor
    """``[]`` or ``[...]``: bound on the mean divergence, nats."""
    cost_limits: Tensor
    """``[m]`` or ``[..., m]``: limits in the unit of the cost estimates."""


class ScaledProblem(NamedTuple):
    """A dual in units of the estimates' spreads, to be minimized over ``lower <= (η, λ) <= upper``."""

    dual: DualProblem
    """The scaled dual."""
    limits: Tensor
    """``[m]`` or ``[..., m]``: the limits in the caller's unit."""
    center: Tensor
    """``[..., 1 + m]``: the mean estimate under the prior, in the caller's unit."""
    spread: Tensor
    """``[..., 1 + m]``: the unit of the reward and of each cost."""
    constant: Tensor
    """``[..., 1 + m]`` bool: all actions of every state have the same value."""
    lower: Tensor
    """``[..., 1 + m]``"""
    upper: Tensor
    """``[..., 1 + m]``"""
    unreachable_below: Tensor
    """``[...]``: a dual value below this proves that the limits cannot be met; a solver may stop there."""


def dual_problem(
    q_reward: Tensor,
    q_cost: Tensor,
    epsilon: float | Tensor,
    cost_limits: float | Tensor,
    log_prior: Tensor | None = None,
) -> DualProblem:
    """Arrange an E-step for evaluation, in float64.

    Args:
        q_reward: ``[..., B, K]``, discounted reward of each particle.
        q_cost: ``[..., B, K, m]``, discounted costs; ``[..., B, K]`` is read as ``m = 1``; ``m = 0`` is an
            E-step without constraint (MPO).
        epsilon: bound on ``mean_b KL(q_b ‖ p_b)``, nats.
        cost_limits: ``[m]`` or ``[..., m]``, in the unit of ``q_cost``; a number is read as ``[1]``.
        log_prior: ``[..., B, K]``, log-probabilities of the actions, normalized here over ``K``; ``-inf``
            excludes an action, whose estimates are then ignored. ``None`` means uniform.

    Raises:
        ValueError: for shapes that do not fit together, or without states. No value is read.

    Example:
        >>> problem = dual_problem(torch.zeros(5, 4), torch.zeros(5, 4, 2), 0.1, torch.ones(2))
        >>> problem.features.shape
        torch.Size([3, 5, 4])
    """
    shape, device = q_reward.shape, q_reward.device
    if len(shape) < 2 or shape[-1] < 2:
        raise ValueError(f"q_reward must be [..., B, K] with K >= 2 particles, got {tuple(shape)}")
    require_states(shape, "q_reward")
    if q_cost.ndim == len(shape):
        q_cost = q_cost.unsqueeze(-1)
    if q_cost.shape[:-1] != shape:
        raise ValueError(
            f"q_cost must be [..., B, K, m] beside q_reward {tuple(shape)}, got {tuple(q_cost.shape)}"
        )
    if log_prior is not None and log_prior.shape != shape:
        raise ValueError(
            f"log_prior must have the shape of q_reward, {tuple(shape)}, got {tuple(log_prior.shape)}"
        )
    limits = torch.as_tensor(cost_limits, dtype=torch.float64, device=device)
    limits = limits if limits.ndim else limits.reshape(1)
    if limits.shape[-1] != q_cost.shape[-1] or limits.ndim >= len(shape):
        raise ValueError(
            f"cost_limits of shape {tuple(limits.shape)} do not fit q_cost's m = {q_cost.shape[-1]} costs"
        )
    features = torch.cat([q_reward.unsqueeze(-3), q_cost.movedim(-1, -3)], dim=-3).to(torch.float64)
    if log_prior is not None:
        log_prior = log_prior.to(torch.float64).log_softmax(-1)
        features = torch.where(log_prior.isneginf().unsqueeze(-3), 0.0, features)
    epsilon = torch.as_tensor(epsilon, dtype=torch.float64, device=device)
    return DualProblem(features.contiguous(), log_prior, epsilon, limits)


def check_values(problem: DualProblem) -> None:
    """Raise ValueError for values that no E-step can have.

    Example:
        >>> check_values(dual_problem(torch.zeros(5, 4), torch.zeros(5, 4, 2), 0.0, torch.ones(2)))
        Traceback (most recent call last):
        ValueError: epsilon=0.0 must be positive and finite (nats)
    """
    # A single read of the device where all is well: a sum is finite only if its terms are.
    asked = [problem.features.sum(), problem.epsilon, problem.cost_limits]
    if problem.log_prior is not None:
        asked[0] = asked[0] + problem.log_prior.amax(-1).sum()  # NaN if a row is no distribution
    total, *settings = torch.cat([value.reshape(-1) for value in asked]).tolist()
    radii, limits = settings[: problem.epsilon.numel()], settings[problem.epsilon.numel() :]
    if not all(0.0 < radius < math.inf for radius in radii):
        raise ValueError(f"epsilon={problem.epsilon.tolist()} must be positive and finite (nats)")
    if not all(map(math.isfinite, limits)):
        raise ValueError(f"cost_limits={problem.cost_limits.tolist()} must be finite (Q units)")
    if math.isfinite(total):
        return
    columns = problem.features.isfinite().movedim(-3, 0).flatten(1).all(1)
    if not bool(columns.all()):  # else only the sum overflows
        bad = int(columns.logical_not().nonzero()[0])
        name = "q_reward" if bad == 0 else f"q_cost[..., {bad - 1}]"
        raise ValueError(f"{name} holds values that are not finite")
    if problem.log_prior is not None:
        rows = problem.log_prior.isnan().any(-1)
        if bool(rows.any()):
            raise ValueError(
                f"log_prior is no distribution in state {first_state(rows)}: it holds NaN or +inf there, "
                "or -inf for every action"
            )


def first_state(states: Tensor) -> int | tuple[int, ...]:
    """Return the index of the first state ``[...]`` that is marked.

    Example:
        >>> first_state(torch.tensor([False, True]))
        1
    """
    index = tuple(states.nonzero()[0].tolist())
    return index[0] if len(index) == 1 else index


def weight_dtype(q_reward: Tensor) -> torch.dtype:
    """Return the dtype of the weights: that of the estimates, or float32 if it has fewer digits.

    Rows of fewer digits do not sum to 1. Integers have no fractions.

    Example:
        >>> weight_dtype(torch.zeros(2, 2).bfloat16()), weight_dtype(torch.zeros(2, 2).double())
        (torch.float32, torch.float64)
    """
    return torch.promote_types(q_reward.dtype, torch.float32)


def center_estimates(features: Tensor, log_prior: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Center estimates ``[..., n, B, K]`` per state and measure their spread, under the prior.

    Returns:
        The means ``[..., n, B, 1]``, the centered estimates, and the spreads ``[..., n]``.
    """
    if log_prior is None:
        base = features.mean(-1, keepdim=True)
        centered = features - base
        entries = features.shape[-2] * features.shape[-1]
        return base, centered, torch.linalg.vector_norm(centered, dim=(-2, -1)) / math.sqrt(entries)
    prior = log_prior.exp().unsqueeze(-3)
    base = (prior * features).sum(-1, keepdim=True)
    centered = torch.where(log_prior.isneginf().unsqueeze(-3), 0.0, features - base)
    spread = (centered.square() * prior).sum(-1).mean(-1).sqrt()
    entries = features.shape[-2] * features.shape[-1]
    least = _LEAST_SPREAD * torch.linalg.vector_norm(centered, dim=(-2, -1)) / math.sqrt(entries)
    return base, centered, torch.maximum(spread, least)


def scale_problem(
    problem: DualProblem,
    eta_min: float = 1e-6,
    lam_max: float | None = None,
    stop_if_unreachable: bool = False,
) -> ScaledProblem:
    """Center every estimate per state and divide it by its spread ``s``.

        s_i² = mean_b Var_p(Q_i[b, ·])         (at least 1e-6 of the root mean square of Q_i − E_p Q_i)
        Q_i' = (Q_i − E_p Q_i) / s_i
        d_i' = (d_i − mean_b E_p Q_i) / s_i

    leaves the optimal ``q`` as it is and turns the multipliers into ``η' = η / s_r`` and
    ``λ_i' = λ_i s_i / s_r``. One tolerance and one set of bounds then fit all problems. No ``q`` can move a
    cost without spread: its features and its limit become 0, which takes it out of the problem.

    Args:
        problem: from :func:`dual_problem`.
        eta_min: lower bound of ``η``, in spreads of the reward.
        lam_max: upper bound of every ``λ_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        stop_if_unreachable: whether a solver may stop at a proof that the limits cannot be met.

    Example:
        >>> q_reward = torch.tensor([[1.0, 3.0]])
        >>> scaled = scale_problem(dual_problem(q_reward, torch.zeros(1, 2, 0), 0.1, torch.zeros(0)))
        >>> scaled.center.tolist(), scaled.spread.tolist(), scaled.dual.features.tolist()
        ([2.0], [1.0], [[[-1.0, 1.0]]])
    """
    base, centered, spread = center_estimates(problem.features, problem.log_prior)
    center = base.mean((-2, -1))
    size = torch.linalg.vector_norm(base, dim=(-2, -1)) / math.sqrt(base.shape[-2])
    constant = spread <= _NO_SPREAD * size
    spread = spread.masked_fill(constant, 1.0)
    inverse = ~constant / spread
    limits = (problem.cost_limits - center[..., 1:]) * inverse[..., 1:]
    dual = problem._replace(features=centered.mul_(inverse[..., None, None]), cost_limits=limits)
    # fill_: assigning a number would copy it from the host, which a CUDA graph does not allow.
    lower, upper = torch.zeros_like(spread), torch.full_like(spread, 1e6)
    lower.select(-1, 0).fill_(eta_min)
    if lam_max is not None:
        upper = lam_max * (spread / spread[..., :1])
    upper.select(-1, 0).fill_(torch.inf)
    if stop_if_unreachable:  # the least reward that any q can have, less a spread for rounding
        below = dual.features[..., 0, :, :].amin(-1).mean(-1) - 1.0
    else:
        below = torch.full_like(spread[..., 0], -torch.inf)
    return ScaledProblem(dual, problem.cost_limits, center, spread, constant, lower, upper, below)
