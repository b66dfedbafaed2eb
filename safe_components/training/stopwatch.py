"""Where the time of a run goes: one stop-watch that shares it out among phases."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Stopwatch"]

T = TypeVar("T")


class Stopwatch:
    """Share out the time that passes so that every moment belongs to exactly one phase.

    The phases' seconds therefore add up to the time that has passed. Contexts may be nested: what passes
    inside is the inner phase's alone. These are the host's times: work that a GPU still has to do belongs to
    the phase that waits for its result. One object keeps its own time, unlike TorchRL's ``timeit``, which
    keeps one account per process and counts nested stretches twice.

    Args:
        rest: the phase of all time spent in no context.
        *phases: the others.

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
        """Time spent inside belongs to ``phase``.

        Raises:
            ValueError: if it was not named at construction.
        """
        if phase not in self._seconds:
            raise ValueError(f"phase is {phase!r}, must be one of {tuple(self._seconds)}")
        before = self._switch(phase)
        try:
            yield
        finally:
            self._switch(before)

    def each(self, phase: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; waiting for the next one belongs to ``phase``, what is done with it does not."""
        iterator = iter(items)
        while True:
            with self(phase):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def pop(self) -> dict[str, float]:
        """Seconds of each phase since the last call, or since construction."""
        self._switch(self._phase)
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds

    def _switch(self, phase: str) -> str:
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before
