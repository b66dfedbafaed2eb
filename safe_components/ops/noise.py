"""Standard normal numbers, drawn on the spot or provided from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

NoiseSource = Callable[[torch.Size, torch.dtype, torch.device], Tensor]

_SOURCES: list[NoiseSource] = []


def standard_normal(size: Sequence[int], like: Tensor) -> Tensor:
    """Return independent numbers ``N(0, 1)`` of this size, with the dtype and on the device of ``like``.

    They come from PyTorch's global generator, or from the source of :func:`noise_from`.

    Example:
        >>> standard_normal((4, 2), torch.zeros(1)).shape
        torch.Size([4, 2])
    """
    if _SOURCES:
        return _SOURCES[-1](torch.Size(size), like.dtype, like.device)
    return torch.randn(*size, dtype=like.dtype, device=like.device)


@contextmanager
def noise_from(source: NoiseSource) -> Iterator[None]:
    """Return a context in which ``source(size, dtype, device)`` provides the numbers.

    A population of learners draws its numbers beforehand, one random stream per learner.

    Example:
        >>> with noise_from(lambda size, dtype, device: torch.ones(size)):
        ...     standard_normal((2,), torch.zeros(1))
        tensor([1., 1.])
    """
    _SOURCES.append(source)
    try:
        yield
    finally:
        _SOURCES.pop()
