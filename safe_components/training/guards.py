"""Checks that stop a run at the first number that is not finite, and when a critic diverges."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase

__all__ = ["require_bounded_losses", "require_finite"]


def require_finite(values: TensorDictBase | Mapping[str, float], where: str) -> None:
    """Raise FloatingPointError if a floating-point entry holds a NaN or an infinity.

    Args:
        values: TensorDict of any batch size, or numbers by name.
        where: origin of the values, for the error message.

    Raises:
        FloatingPointError: with the first key that is not finite, the number of such values, and ``where``.

    Example:
        >>> from tensordict import TensorDict
        >>> require_finite(TensorDict(q=torch.tensor([1.0, float("nan")])), "update 7")
        Traceback (most recent call last):
        FloatingPointError: 'q' holds 1 non-finite value of 2 at update 7
    """
    if isinstance(values, TensorDictBase):
        items = values.items(include_nested=True, leaves_only=True)
    else:
        items = ((key, torch.as_tensor(value)) for key, value in values.items())
    for key, value in items:
        # A sum is finite only if every term is finite, and it is much cheaper than a mask. If finite terms
        # overflow, the exact count below finds no bad value.
        if value.is_floating_point() and not torch.isfinite(value.sum()):
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                plural = "s" if bad > 1 else ""
                raise FloatingPointError(
                    f"{key!r} holds {bad} non-finite value{plural} of {value.numel()} at {where}"
                )


def require_bounded_losses(metrics: Mapping[str, float], largest: float, where: str) -> None:
    """Raise FloatingPointError if the squared error of a critic is beyond anything that rewards can explain.

        loss ≤ (10⁶ max(largest, 1))²

    A return is at most ``largest`` times the number of steps that the discount looks ahead, and so are the
    errors of a critic that has not diverged.

    Args:
        metrics: metrics by name; ``loss_q_*`` and ``loss_value_*`` are looked at.
        largest: largest reward or cost of a step so far.
        where: origin of the metrics, for the error message.

    Raises:
        FloatingPointError: with the loss, its value and ``where``.

    Example:
        >>> require_bounded_losses({"loss_q_reward": 1e23}, 2.0, "frame 5000")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FloatingPointError: loss_q_reward is 1e+23 at frame 5000: the critic diverges, ...
    """
    for name, value in metrics.items():
        if name.startswith(("loss_q", "loss_value")) and value > (1e6 * max(largest, 1.0)) ** 2:
            raise FloatingPointError(
                f"{name} is {value:.3g} at {where}: the critic diverges, because rewards and costs of at "
                f"most {largest:g} per step cannot explain such errors; lower critics.lr, or scale the "
                "reward and the costs"
            )
