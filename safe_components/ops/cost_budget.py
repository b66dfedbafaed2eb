"""Conversion of a limit on the cost of an episode to a limit on a discounted Q-value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from safe_components.ops.bounds import episode_limits


def q_cost_limit(cost_limit: float | Sequence[float] | Tensor, gamma: float, episode_length: int) -> Tensor:
    """Convert a limit to Q units: ``d_Q = d (1 - γ^T) / ((1 - γ) T)``, and ``d_Q = d`` at ``γ = 1``.

    A limit ``d`` bounds the *sum* of costs over an episode of ``T`` steps; a critic estimates the
    *discounted* sum. The two agree if the cost is spread evenly over an episode of fixed length: each step
    costs ``d / T``, discounted and summed. An early cost is discounted less than that, and a late cost more.
    For uneven costs, the converted limit is therefore an approximation.

    Args:
        cost_limit: ``d``, cost per episode; one number, or one per cost signal (``[m]``).
        gamma: ``γ``, discount of the cost critic, in ``(0, 1]``.
        episode_length: ``T``, number of decisions (steps after frame skip), at least 1.

    Returns:
        ``d_Q``, discounted cost: shape ``[]`` for one number, ``[m]`` otherwise. The dtype is float64 unless
        ``cost_limit`` is a floating-point tensor, whose dtype and device are kept.

    Raises:
        ValueError: if a limit is negative or not finite, ``gamma`` lies outside ``(0, 1]``, or
            ``episode_length`` is below 1.

    Source: CVPO (Liu et al. 2022, arXiv 2201.11927), conversion of the episodic cost threshold.

    Example:
        >>> q_cost_limit(25.0, gamma=0.99, episode_length=500)
        tensor(4.9671, dtype=torch.float64)
        >>> q_cost_limit([10.0, 5.0], gamma=1.0, episode_length=500)
        tensor([10.,  5.], dtype=torch.float64)
    """
    episode_limits(cost_limit)  # raises on a bad limit
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma={gamma} must lie in (0, 1]")
    if not episode_length >= 1:
        raise ValueError(f"episode_length={episode_length} must be at least 1 step")
    if isinstance(cost_limit, Tensor) and cost_limit.is_floating_point():
        limit = cost_limit
    else:
        limit = torch.as_tensor(cost_limit, dtype=torch.float64)
    if gamma == 1.0:
        return limit.clone()
    # expm1 and log1p keep full precision where γ is close to 1 and 1 - γ^T cancels.
    log_gamma = math.log1p(gamma - 1.0)
    return limit * (-math.expm1(episode_length * log_gamma) / ((1.0 - gamma) * episode_length))
