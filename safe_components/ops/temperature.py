"""The weight of an entropy, which may change while a part that reads it stays as it is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Temperature(nn.Module):
    """The weight ``α`` of an entropy, in reward per nat; a call returns its present value.

    Args:
        value: a number; or a tensor ``[]``, which is shared and not copied, so that its owner can change and
            save it; or a function that returns the present value.

    Example:
        >>> import torch
        >>> coef = torch.tensor(0.5)
        >>> temperature = Temperature(coef)
        >>> _ = coef.mul_(4.0)
        >>> temperature()
        tensor(2.)
        >>> Temperature(0.0).active
        False
    """

    value: float | Tensor | Callable[[], Tensor]

    def __init__(self, value: float | Tensor | Callable[[], Tensor]) -> None:
        super().__init__()
        #: Whether there is an entropy at all. Only the number 0 says no: a tensor may change.
        self.active = not isinstance(value, (int, float)) or value != 0
        if isinstance(value, Tensor):
            self.register_buffer("value", value, persistent=False)
        else:
            self.value = value

    def forward(self) -> float | Tensor:
        """Return the present value."""
        return self.value() if callable(self.value) else self.value
