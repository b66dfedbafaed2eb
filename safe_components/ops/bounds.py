"""Checks of action bounds and of cost limits, shared by every part that takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def action_bounds(
    action_low: Sequence[float] | Tensor, action_high: Sequence[float] | Tensor
) -> tuple[Tensor, Tensor]:
    """Return the lower and upper action bounds as ``[a]`` tensors of the default dtype.

    Args:
        action_low: ``[a]``, lower bounds.
        action_high: ``[a]``, upper bounds.

    Returns:
        Copies of both.

    Raises:
        ValueError: unless both bounds are vectors of the same size, at least 1, with ``low < high`` and a
            finite ``high - low``.

    Example:
        >>> action_bounds([-1.0], [1.0])
        (tensor([-1.]), tensor([1.]))
    """
    dtype = torch.get_default_dtype()
    low, high = torch.as_tensor(action_low, dtype=dtype), torch.as_tensor(action_high, dtype=dtype)
    if low.ndim != 1 or low.shape != high.shape or low.numel() == 0:
        raise ValueError(
            f"action_low and action_high must both be [a] with a >= 1, got {tuple(low.shape)} and "
            f"{tuple(high.shape)}; for batched environments, pass the bounds of a single one"
        )
    if not bool(((low < high) & (high - low).isfinite()).all()):
        raise ValueError(
            f"action bounds must be finite with low < high, got low={low.tolist()} and high={high.tolist()}; "
            "rescale or bound the action space first"
        )
    return low.clone(), high.clone()


def episode_limits(cost_limit: float | Sequence[float] | Tensor, name: str = "cost_limit") -> Tensor:
    """Return limits on the cost of an episode as ``[m]``, float64.

    Args:
        cost_limit: one number, or one per cost signal, in cost per episode.
        name: name of the argument in error messages.

    Returns:
        A copy, on the device of ``cost_limit``.

    Raises:
        ValueError: if a limit is negative or not finite, or the limits are not a vector.

    Example:
        >>> episode_limits(25.0)
        tensor([25.], dtype=torch.float64)
    """
    limits = q_limits(cost_limit, name)
    if not bool((limits >= 0).all()):
        raise ValueError(f"{name}={limits.tolist()} must be at least 0 (cost per episode)")
    return limits


def q_limits(cost_limits: float | Sequence[float] | Tensor, name: str = "cost_limits") -> Tensor:
    """Return limits in the unit of a cost critic as ``[m]``, float64; they may be negative.

    Args:
        cost_limits: one number, or one per cost signal. A limit on an advantage may be negative.
        name: name of the argument in error messages.

    Returns:
        A copy, on the device of ``cost_limits``.

    Raises:
        ValueError: if a limit is not finite, or the limits are not a vector.

    Example:
        >>> q_limits([-0.5, 2.0])
        tensor([-0.5000,  2.0000], dtype=torch.float64)
    """
    limits = torch.as_tensor(cost_limits, dtype=torch.float64).detach().clone()
    if limits.ndim > 1:
        raise ValueError(f"{name} must be [m], one limit per cost, got shape {tuple(limits.shape)}")
    limits = limits.reshape(-1)
    if not bool(limits.isfinite().all()):
        raise ValueError(f"{name}={limits.tolist()} must be finite")
    return limits
