"""Where the processes of a study's members run: on this machine, or on a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Job", "LocalPool", "Pool", "RayPool", "last_words"]

MEMBER_PROCESS = Path(__file__).with_name("member_process.py")
_RAY_TIMEOUT = 30.0


class Job(Protocol):
    """A member's process."""

    def poll(self) -> int | None:
        """Exit status; None while it runs."""

    def stop(self) -> None:
        """Ask it to save and leave; asked again, it leaves at once."""


class Pool(Protocol):
    """Starts processes."""

    slots: int
    """how many at a time"""

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start ``command``, its output appended to ``log``."""

    def close(self) -> None:
        """Give everything back."""


def _environment(threads: int) -> dict[str, str]:
    """NumPy's and SciPy's threads too, and output as it comes, so that a log ends with the error."""
    libraries = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**dict.fromkeys(libraries, str(threads)), "PYTHONUNBUFFERED": "1"}


def _spawn(command: Sequence[str], log: str, environment: dict[str, str]) -> subprocess.Popen:
    """Start a process whose standard input ends when this process does, however that happens."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )


def _close(process: subprocess.Popen) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _until_done(command: Sequence[str], log: str, environment: dict[str, str]) -> int:
    """Run a process within a Ray task; cancelling the task asks the process to save and leave."""
    # A shell has its background commands ignore SIGINT, Ray's workers inherit that, and Ray cancels by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = _spawn(command, log, environment)
    while True:
        try:
            while process.poll() is None:
                time.sleep(0.2)
            _close(process)
            return process.returncode
        except KeyboardInterrupt:  # what Ray raises in a cancelled task
            process.terminate()


class _LocalJob:
    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def poll(self) -> int | None:
        status = self._process.poll()
        if status is not None:
            _close(self._process)
        return status

    def stop(self) -> None:
        self._process.terminate()


class LocalPool:
    """Processes of this machine.

    Args:
        slots: how many at a time.
        threads: of each.
    """

    def __init__(self, slots: int, threads: int = 1) -> None:
        self.slots = slots
        self._environment = _environment(threads)

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start ``command``, its output appended to ``log``."""
        return _LocalJob(_spawn(command, str(log), self._environment))

    def close(self) -> None:
        """Nothing to give back."""


def _reach(address: str, timeout: float) -> None:
    """Check that a Ray cluster answers; ``ray.init`` itself may wait for minutes."""
    deadline = time.monotonic() + timeout
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=timeout).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, "
            "or use --ray local"
        ) from None
    attempt = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", attempt, address]
    try:
        left = max(deadline - time.monotonic(), 1.0)
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"no Ray cluster answers at {address} within {timeout:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({lines[-1]}); one that was started with a token "
            "needs RAY_AUTH_MODE=token here, too"
        )


class _RayJob:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference, self._asked = ray, reference, 0

    def poll(self) -> int | None:
        """Exit status; 1 if the worker or its machine was lost."""
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return self._ray.get(self._reference)
        except self._ray.exceptions.RayError:
            return 1

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=self._asked > 0)
        self._asked += 1


class RayPool:
    """Tasks of a Ray cluster, each of which runs the same process as `LocalPool` would.

    The machines of a cluster must see the same files at the same paths, this Python included.

    Args:
        address: ``"local"`` starts Ray on this machine, else ``HOST:PORT`` of a cluster's head.
        slots: how many tasks at a time; None for as many as the cluster has CPUs.
        threads: of each, and CPUs it reserves.
        gpus: share of a GPU it reserves.
        timeout: seconds to wait for the cluster's answer.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if no cluster answers, or Ray does not start here.
    """

    def __init__(
        self,
        address: str,
        slots: int | None,
        threads: int = 1,
        gpus: float = 0.0,
        timeout: float = _RAY_TIMEOUT,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ImportError("--ray needs Ray: pip install 'safe_components[ray]'")
        if address != "local" and not re.fullmatch(r"[^:/]+:\d+", address):
            raise ValueError(f"ray is {address!r}, must be local or HOST:PORT")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray  # optional, and slow to load: only where it is asked for

        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            slots = slots or 1
            try:
                ray.init(
                    address="local",
                    num_cpus=slots * threads,
                    include_dashboard=False,
                    object_store_memory=80_000_000,  # results are exit statuses
                    **common,
                )
            except Exception as error:  # what Ray raises where its processes are not up after 30 s
                ray.shutdown()
                first = str(error).partition(". ")[0]
                raise ConnectionError(f"Ray did not start on this machine ({first}); is it busy?") from None
        else:
            _reach(address, timeout)
            ray.init(address=address, **common)
        self.slots = slots or max(int(ray.cluster_resources().get("CPU", 1)) // threads, 1)
        self._ray = ray
        self._environment = _environment(threads)

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find it
        self._run = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_until_done)

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Submit ``command``, its output appended to ``log``."""
        return _RayJob(self._ray, self._run.remote(list(command), str(log), self._environment))

    def close(self) -> None:
        """Leave the cluster; a Ray started here ends."""
        self._ray.shutdown()


def last_words(log: Path) -> str:
    """The line of a log that says what went wrong: the last that starts with "error", else the last."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error")]
    return (errors or lines or ["no output"])[-1].strip()
