"""Handling of Ctrl-C as a request to save and stop after the current iteration."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType, TracebackType

__all__ = ["StopRequest", "workers_ignore_interrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets a flag instead of raising.

    A second signal raises ``KeyboardInterrupt`` at once. A context inside another one shares its flag, so a
    request reaches every run in the process. Python handles signals only in the main thread, so the flag is
    never set in other threads.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     bool(stop)
        stopping after this iteration; the run will be saved (again: stop at once)
        True
    """

    def __init__(self) -> None:
        self._asked = False
        self._outer: StopRequest | None = None
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self._asked or bool(self._outer)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("stopping after this iteration; the run will be saved (again: stop at once)", flush=True)

    def __enter__(self) -> StopRequest:
        outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(outer, StopRequest):
            self._outer = outer
        elif threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal returned
        self._previous = {}


@contextmanager
def workers_ignore_interrupt() -> Iterator[None]:
    """Return a context whose new processes ignore Ctrl-C, which a terminal sends to the whole process group.

    The signal is blocked, and the processes inherit that. The parent alone then decides when to stop, and it
    can shut down its workers in order. A Ctrl-C inside the context reaches the parent at its end.
    """
    # Python starts this helper process with the first other one, and lifts the block as it does so.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
