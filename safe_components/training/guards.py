"""A check that stops a run at the first number that is not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase

__all__ = ["require_finite"]


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
