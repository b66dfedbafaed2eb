"""Stop a run at the first number that is not finite, before it spreads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase

__all__ = ["require_finite"]


def require_finite(values: TensorDictBase | Mapping[str, float], step: int, what: str = "frame") -> None:
    """Raise if any floating-point entry holds a NaN or an infinity.

    Args:
        values: what was just collected or computed, of any batch size, or numbers by name.
        step: where the run is, for the message.
        what: the unit of ``step``.

    Raises:
        FloatingPointError: naming the first bad key, how many of its values are bad, and ``step``.

    Example:
        >>> from tensordict import TensorDict
        >>> require_finite(TensorDict(q=torch.tensor([1.0, float("nan")])), step=7, what="update")
        Traceback (most recent call last):
        FloatingPointError: 'q' holds 1 non-finite value of 2 at update 7
    """
    if isinstance(values, TensorDictBase):
        items = values.items(include_nested=True, leaves_only=True)
    else:
        items = ((key, torch.as_tensor(value)) for key, value in values.items())
    for key, value in items:
        # A sum is finite only if every term is, and is much cheaper than a mask; an overflowing
        # sum of finite terms falls through to the exact count.
        if value.is_floating_point() and not torch.isfinite(value.sum()):
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                plural = "s" if bad > 1 else ""
                raise FloatingPointError(
                    f"{key!r} holds {bad} non-finite value{plural} of {value.numel()} at {what} {step}"
                )
