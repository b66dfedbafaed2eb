"""A limit on the time that an environment may take for one call."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Overdue(BaseException):
    """No call finished in time. This is no ``Exception``, so environments do not catch it by accident."""


@contextmanager
def watched(seconds: float | None) -> Iterator[list[Any]]:
    """Give a list to which the block appends the result of each call, and interrupt a call that hangs.

    A call is interrupted if it has run for ``seconds``, at the latest after twice that time. The interruption
    is a signal (SIGALRM), so it ends whatever runs in Python or waits in the operating system, but not a
    computation in C that never returns. It needs the main thread and an operating system with that signal;
    elsewhere nothing is interrupted.

    Args:
        seconds: the limit; None for no limit.

    Raises:
        Overdue: in the block, if no result was appended for that long.

    Example:
        >>> import time
        >>> with watched(0.05) as results:
        ...     results.append(1)
        ...     time.sleep(60)
        Traceback (most recent call last):
        safe_components.envs.step_timeout.Overdue
    """
    results: list[Any] = []
    on_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not on_main_thread or not hasattr(signal, "setitimer"):
        yield results
        return
    finished = 0

    def look(signum: int, frame: FrameType | None) -> None:
        nonlocal finished
        if len(results) == finished:
            raise Overdue
        finished = len(results)

    handler = signal.signal(signal.SIGALRM, look)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again, in case the first one is caught
    try:
        yield results
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
