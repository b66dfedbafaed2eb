"""The map that squashes a Gaussian's values into the action bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict.nn import ProbabilisticTensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F


class Squash(nn.Module):
    """The map ``a = c + h tanh(x)`` from values ``x [..., a]`` to actions inside the bounds.

    Args:
        center: ``c [a]``, middle of each action's range.
        half_range: ``h [a]``, half of each action's range.

    Example:
        >>> squash = Squash(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> squash(torch.tensor([[0.0], [100.0]]))
        tensor([[1.],
                [3.]])
        >>> squash.log_slope(torch.tensor([50.0]))
        tensor(-97.9206)
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, center: Tensor, half_range: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("half_range", half_range)

    def forward(self, value: Tensor) -> Tensor:
        """Return the actions ``[..., a]`` of values ``[..., a]``."""
        return torch.addcmul(self.center, self.half_range, torch.tanh(value))

    def log_slope(self, value: Tensor) -> Tensor:
        """Return ``log |det da/dx| = Σ_i log(h_i (1 - tanh² x_i))``, ``[...]``.

        It is exact far out, too, where ``tanh`` is 1 in floating point:
        ``1 - tanh² x = 4 exp(-2x) / (1 + exp(-2x))²``.
        """
        slope = 2.0 * (math.log(2.0) - value - F.softplus(-2.0 * value))
        return (slope + self.half_range.log()).sum(-1)


def squash_of(policy: Any) -> Squash | None:
    """Return the map from a Gaussian policy's values to its actions; None if the values are the actions.

    A distribution that squashes says so by ``squashes = True``, and takes the map as its argument ``squash``.

    Example:
        >>> squash_of(torch.nn.Linear(2, 1)) is None
        True
    """
    for module in policy.modules() if isinstance(policy, nn.Module) else ():
        kind = getattr(module, "distribution_class", None)
        if isinstance(module, ProbabilisticTensorDictModule) and getattr(kind, "squashes", False):
            squash: Squash = module.distribution_kwargs["squash"]
            return squash
    return None
