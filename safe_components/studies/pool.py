"""Processes for the members of a study, on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Job", "LocalPool", "Pool", "last_words", "library_threads", "spawn"]


class Job(Protocol):
    """The process of a member."""

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""

    def stop(self) -> None:
        """Ask the process to save and exit; a second call makes it exit at once."""


class Pool(Protocol):
    """A pool that starts processes."""

    slots: int
    """number of processes at a time"""

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start ``command`` and append its output to ``log``."""

    def close(self) -> None:
        """Release the resources of the pool."""


def library_threads(threads: int) -> dict[str, str]:
    """Return environment variables for processes with this number of threads, also in NumPy and SciPy.

    They also turn off the buffering of output, so that a log ends with the error.
    """
    libraries = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**dict.fromkeys(libraries, str(threads)), "PYTHONUNBUFFERED": "1"}


def spawn(command: Sequence[str], log: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process whose standard input ends when this process ends for any reason."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )


class _LocalJob:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        status = self._process.poll()
        if status is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def stop(self) -> None:
        self._process.terminate()


class LocalPool:
    """A pool of processes on this machine.

    Args:
        slots: number of processes at a time.
        threads: number of CPU threads of each process.
    """

    def __init__(self, slots: int, threads: int = 1) -> None:
        self.slots = slots
        self._environment = library_threads(threads)

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start ``command`` and append its output to ``log``."""
        return _LocalJob(spawn(command, str(log), self._environment))

    def close(self) -> None:
        """Do nothing, because the pool holds no resources."""


def last_words(log: Path) -> str:
    """Return the last line of a log that starts with "error"; the last line if no line does."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error")]
    return (errors or lines or ["no output"])[-1].strip()
