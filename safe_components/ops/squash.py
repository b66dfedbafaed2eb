"""The map that squashes a Gaussian's values into the action bounds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from tensordict.nn import ProbabilisticTensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F


class Squash(NamedTuple):
    """The map ``a = c + h tanh(x)`` from values ``x [..., a]`` to actions inside the bounds.

    Attributes:
        center: ``c [a]``, middle of each action's range.
        half_range: ``h [a]``, half of each action's range.

    Example:
        >>> squash = Squash(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> squash(torch.tensor([[0.0], [100.0]]))
        tensor([[1.],
                [3.]])
    """

    center: Tensor
    half_range: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        """Return the actions ``[..., a]`` of values ``[..., a]``."""
        return torch.addcmul(self.center, self.half_range, torch.tanh(value))

    def log_slope(self, value: Tensor) -> Tensor:
        """Return ``log |det da/dx| = Σ_i log(h_i (1 - tanh² x_i))``, ``[...]``.

        It is exact far out, too, where ``tanh`` is 1 in floating point:
        ``1 - tanh² x = 4 exp(-2x) / (1 + exp(-2x))²``.

        Example:
            >>> Squash(torch.zeros(1), torch.ones(1)).log_slope(torch.tensor([50.0]))
            tensor(-98.6137)
        """
        slope = 2.0 * (math.log(2.0) - value - F.softplus(-2.0 * value))
        return (slope + self.half_range.log()).sum(-1)


def squash_of(policy: Any) -> Squash | None:
    """Return the map from a Gaussian policy's values to its actions; None if the values are the actions.

    Example:
        >>> squash_of(torch.nn.Linear(2, 1)) is None
        True
    """
    modules = policy.modules() if isinstance(policy, nn.Module) else ()
    for module in modules:
        kind = getattr(module, "distribution_class", None)
        if isinstance(module, ProbabilisticTensorDictModule) and getattr(kind, "squashes", False):
            return Squash(**{name: module.distribution_kwargs[name] for name in Squash._fields})
    return None
