"""A stopwatch that divides the time of a run among phases."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Stopwatch"]

T = TypeVar("T")


class Stopwatch:
    """A stopwatch that assigns every moment to exactly one phase.

    The seconds of the phases therefore add up to the elapsed time. Contexts may be nested; time inside a
    nested context belongs to the inner phase alone. The stopwatch measures time on the host. Work that a GPU
    still has to do belongs to the phase that waits for its result. Each stopwatch keeps its own time, whereas
    TorchRL's ``timeit`` keeps one record per process and counts nested contexts twice.

    Args:
        rest: name of the phase outside every context.
        *phases: names of the other phases.

    Example:
        >>> watch = Stopwatch("learning", "collecting")
        >>> for batch in watch.each("collecting", [1, 2]):
        ...     time.sleep(0.001)
        >>> with watch("collecting"):
        ...     time.sleep(0.02)
        >>> seconds = watch.pop()
        >>> 0.002 < seconds["learning"] < seconds["collecting"]
        True
    """

    def __init__(self, rest: str, *phases: str) -> None:
        self._seconds = dict.fromkeys((rest, *phases), 0.0)
        self._phase = rest
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Assign the time inside this context to ``phase``.

        Raises:
            ValueError: if ``phase`` was not named at construction.
        """
        if phase not in self._seconds:
            raise ValueError(f"phase is {phase!r}, must be one of {tuple(self._seconds)}")
        before = self._switch(phase)
        try:
            yield
        finally:
            self._switch(before)

    def each(self, phase: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; only the time that it takes to get an item belongs to ``phase``."""
        iterator = iter(items)
        while True:
            with self(phase):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def pop(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, or since construction."""
        self._switch(self._phase)
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds

    def _switch(self, phase: str) -> str:
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before
