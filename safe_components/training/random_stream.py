"""Random streams of several trainings that take turns in one process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["RandomStream"]


class RandomStream:
    """The global random generators of one training, which are in place only while it is its turn.

    Environments, policies and buffers draw from the global generators of PyTorch, NumPy and Python. With a
    stream for each training, what one of them draws does not depend on the others.

    Example:
        >>> one, two = RandomStream(), RandomStream()
        >>> with one.turn():
        ...     _ = torch.manual_seed(0)
        >>> with two.turn():
        ...     _ = torch.randn(3)
        >>> with one.turn():
        ...     print(torch.randn(1))
        tensor([1.5410])
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Return a context in which the global generators are those of this stream."""
        outside = _states()
        if self._state is not None:
            _set_states(self._state)
        try:
            yield
        finally:
            self._state = _states()
            _set_states(outside)


def _states() -> dict[str, Any]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _set_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
