"""Processes for the members of a study, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Job", "LocalPool", "Pool", "killed_by", "last_words", "library_threads", "spawn"]


class Job(Protocol):
    """The process of a member."""

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""

    def stop(self) -> None:
        """Ask the process to save and exit; a second call makes it exit at once."""

    def lost_by(self) -> str:
        """Return what ended the process from outside, which its log does not tell; empty if nothing did."""


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


def killed_by(status: int) -> str:
    """Return the signal that ended a process, as an error for the user; empty if no signal did.

    Args:
        status: exit status of the process, the negative number of a signal that ended it.

    Example:
        >>> killed_by(-15), killed_by(1)
        ('error: the process was killed by signal 15 (Terminated)', '')
    """
    if status >= 0:
        return ""
    said = f"error: the process was killed by signal {-status} ({signal.strsignal(-status)})"
    memory = "; the system kills a process that needs more memory than there is: try fewer --jobs"
    return said + (memory if status == -signal.SIGKILL else "")


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

    def lost_by(self) -> str:
        return killed_by(self._process.returncode or 0)


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


def last_words(log: Path, start: int = 0) -> str:
    """Return the last line of a log that starts with "error"; the last line if no line does.

    Args:
        log: file with the output of all processes of a member.
        start: size of the file in bytes when the last process started, whose words are meant.
    """
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error")]
    return (errors or lines or ["no output"])[-1].strip()
