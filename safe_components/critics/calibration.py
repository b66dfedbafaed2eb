"""How well a critic tells good actions from bad ones, held against the returns that followed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CalibrationMoments(NamedTuple):
    """Sums over steps from which :func:`calibration` follows; sums of several batches may be added.

    Each has the shape ``[n]``, one entry per quantity that the critic estimates, in float64.
    """

    steps: Tensor
    predicted: Tensor
    measured: Tensor
    predicted_square: Tensor
    measured_square: Tensor
    product: Tensor

    # A tuple would be joined with the other; sums are added entry by entry.
    def __add__(self, other: CalibrationMoments) -> CalibrationMoments:  # type: ignore[override]  # of tuple
        """Return the sums over the steps of both."""
        return CalibrationMoments(*(a + b for a, b in zip(self, other, strict=True)))


class Calibration(NamedTuple):
    """What the returns say of a critic; each entry has the shape ``[n]``, in float64."""

    slope: Tensor
    """regression slope of measured on predicted advantages: 1 is right, 0 is noise, negative is wrong"""
    slope_error: Tensor
    """standard error of the slope, for independent steps"""
    bias: Tensor
    """mean return minus mean value, discounted; positive if the critic estimates too little"""


@torch.no_grad()
def calibration_moments(
    signal: Tensor,
    action_value: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    horizon: int = 10,
) -> CalibrationMoments:
    """Compare the advantage that a critic predicts with the advantage that the next steps measured.

        predicted_t = Q(s_t, a_t) - V(s_t)
        measured_t = Σ_{j < k} γʲ x_{t+j} + γᵏ V(s_{t+k}) - V(s_t),    k = min(horizon, steps to the end)

    The value after a terminal step is zero, and that after a truncated step is ``V`` of the state reached. If
    ``Q`` and ``V`` are those of the policy that acts, the expectation of ``measured`` given the step is the
    true advantage, up to ``γᵏ`` times the error of ``V``. So the regression of ``measured`` on ``predicted``
    has slope 1 for a critic that is right. The last ``horizon - 1`` steps of each row are left out, because
    their windows are not complete.

    Args:
        signal: ``x [N, T, n]``, reward or costs of consecutive steps of ``N`` environments.
        action_value: ``Q(s, a) [N, T, n]`` of the actions taken.
        value: ``V(s) [N, T, n]``, the mean of ``Q`` over actions of the policy.
        next_value: ``V(s') [N, T, n]`` of the states reached.
        done: ``[N, T, 1]``, bool: the episode ended.
        terminated: ``[N, T, 1]``, bool: it ended in a terminal state.
        gamma: discount of the critic, in ``[0, 1]``.
        horizon: number of steps measured, at least 1 and at most ``T``.

    Returns:
        Sums over ``N (T - horizon + 1)`` steps.

    Raises:
        ValueError: if the shapes differ, or ``gamma`` or ``horizon`` is out of range.

    Example:
        >>> x = torch.tensor([[[1.0], [0.0], [2.0]]])
        >>> zero, flag = torch.zeros(1, 3, 1), torch.tensor([[[False], [False], [True]]])
        >>> sums = calibration_moments(x, 0.5 * x, zero, zero, flag, flag, gamma=1.0, horizon=1)
        >>> calibration(sums).slope  # twice what was predicted
        tensor([2.], dtype=torch.float64)
    """
    shape = signal.shape
    if signal.ndim != 3 or any(x.shape != shape for x in (action_value, value, next_value)):
        shapes = [tuple(x.shape) for x in (signal, action_value, value, next_value)]
        raise ValueError(f"signal, action_value, value and next_value must all be [N, T, n], got {shapes}")
    if any(flag.shape != (*shape[:2], 1) for flag in (done, terminated)):
        raise ValueError(f"done and terminated must be {[*shape[:2], 1]}, got {tuple(done.shape)}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma={gamma} must lie in [0, 1]")
    if not 1 <= horizon <= shape[1]:
        raise ValueError(f"horizon={horizon} must lie between 1 and the {shape[1]} steps of a row")
    x, v, after = (tensor.to(torch.float64) for tensor in (signal, value, next_value))
    after = torch.where(terminated, 0.0, after)
    length = shape[1] - horizon + 1
    measured = -v[:, :length]
    running = torch.ones_like(done[:, :length])
    for j in range(horizon):
        here = slice(j, j + length)
        measured = measured + torch.where(running, gamma**j * x[:, here], 0.0)
        ends = running if j == horizon - 1 else running & done[:, here]
        measured = measured + torch.where(ends, gamma ** (j + 1) * after[:, here], 0.0)
        running = running & ~ends
    predicted = (action_value.to(torch.float64) - v)[:, :length]
    columns = torch.ones_like(predicted), predicted, measured, predicted**2, measured**2, predicted * measured
    return CalibrationMoments(*(column.sum((0, 1)) for column in columns))


def calibration(moments: CalibrationMoments) -> Calibration:
    """Return slope, its standard error, and bias; NaN where the predictions have no spread.

    Args:
        moments: sums from :func:`calibration_moments`, over at least three steps.

    Source: the slope of ordinary least squares and its standard error, as in any text on regression.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> calibration(CalibrationMoments(4 * one, 0 * one, 2 * one, 4 * one, 2 * one, 2 * one)).slope
        tensor([0.5000], dtype=torch.float64)
    """
    steps = moments.steps
    mean_x, mean_y = moments.predicted / steps, moments.measured / steps
    var_x = moments.predicted_square / steps - mean_x**2
    var_y = moments.measured_square / steps - mean_y**2
    slope = (moments.product / steps - mean_x * mean_y) / var_x
    unexplained = (var_y - slope**2 * var_x).clamp_min(0.0)
    error = (unexplained / var_x / (steps - 2)).sqrt()
    known = var_x > 1e-12 * mean_x.square()
    nan = torch.full_like(slope, torch.nan)
    return Calibration(torch.where(known, slope, nan), torch.where(known, error, nan), mean_y)
