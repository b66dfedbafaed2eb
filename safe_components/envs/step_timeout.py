"""A limit on the time that an environment may take for one call."""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_MAIN_THREAD = threading.main_thread().ident


class Overdue(BaseException):
    """No call finished in time. This is no ``Exception``, so environments do not catch it by accident."""


class Watched:
    """A list to which a block appends the result of each call, and which interrupts a call that hangs.

    A call is interrupted if it has run for ``seconds``, at the latest after twice that time. The interruption
    is a signal (SIGALRM), so it ends whatever runs in Python or waits in the operating system, but not a
    computation in C that never returns. It needs the main thread and an operating system with that signal;
    elsewhere nothing is interrupted.

    Blocks are short and many, so the timer runs on between them, and stops when it finds no block.

    Args:
        seconds: the limit; None for no limit.

    Raises:
        Overdue: in the block, if no result was appended for that long.

    Example:
        >>> with Watched(0.05) as results:
        ...     results.append(1)
        ...     time.sleep(60)
        Traceback (most recent call last):
        safe_components.envs.step_timeout.Overdue
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def __enter__(self) -> list[Any]:
        results: list[Any] = []
        if self._seconds is not None and threading.get_ident() == _MAIN_THREAD:
            _TIMER.watch(results, self._seconds)
        return results

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seconds is not None and threading.get_ident() == _MAIN_THREAD:
            _TIMER.results = None


class _Timer:
    """The process's interval timer, which looks from time to time whether the number of results has grown."""

    def __init__(self) -> None:
        self.results: list[Any] | None = None
        self._seconds = 0.0
        self._reset()

    def _reset(self) -> None:
        self._interval, self._handler = math.inf, signal.SIG_DFL
        self._seen: tuple[list[Any] | None, int] = (None, 0)
        self._since = 0.0

    def watch(self, results: list[Any], seconds: float) -> None:
        self._seconds, self.results = seconds, results
        if seconds < self._interval and hasattr(signal, "setitimer"):
            handler: Any = signal.signal(signal.SIGALRM, self._look)
            if self._interval == math.inf:
                self._handler = handler
            self._interval = seconds
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    def stop(self) -> None:
        """Stop the timer, which would otherwise end a process that takes its time to exit."""
        if self._interval < math.inf:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, self._handler)
            self._reset()

    def _look(self, signum: int, frame: FrameType | None) -> None:
        results, now = self.results, time.monotonic()
        if results is None:
            self.stop()
        elif results is not self._seen[0] or len(results) != self._seen[1]:
            self._seen, self._since = (results, len(results)), now
        elif now - self._since > 0.9 * self._seconds:
            raise Overdue


_TIMER = _Timer()
atexit.register(_TIMER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_TIMER._reset)  # a child does not inherit the timer
