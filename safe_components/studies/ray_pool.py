"""Processes for the members of a study, on a Ray cluster."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safe_components.studies import pool
from safe_components.studies.pool import Job, killed_by, library_threads, spawn

__all__ = ["RayPool"]

_TIMEOUT = 30.0


def _until_done(
    start: Callable[..., subprocess.Popen[bytes]],
    command: Sequence[str],
    log: str,
    environment: Mapping[str, str],
) -> int:
    """Run a process in a Ray task; canceling the task asks the process to save and exit."""
    # Ray cancels a task by SIGINT, which a worker started from a shell's background command would ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(command, log, environment)
    while True:
        try:
            while process.poll() is None:
                time.sleep(0.2)
            if process.stdin is not None:
                process.stdin.close()
            return process.returncode
        except KeyboardInterrupt:  # Ray raises it in a canceled task
            process.terminate()


def _reach(address: str, timeout: float) -> None:
    """Raise ConnectionError unless a Ray cluster answers in time; ``ray.init`` may wait for minutes."""
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
            f"no Ray cluster answers at {address} ({lines[-1]}); a cluster that was "
            "started with a token needs RAY_AUTH_MODE=token here, too"
        )


class _RayJob:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference, self._asked, self._lost = ray, reference, 0, ""

    def poll(self) -> int | None:
        """Return the exit status; 1 if the worker or its machine was lost."""
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            status = int(self._ray.get(self._reference))
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            self._lost = f"error: its task on Ray was lost ({type(error).__name__}: {reason})"
            return 1
        self._lost = killed_by(status)
        return status

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=self._asked > 0)
        self._asked += 1

    def lost_by(self) -> str:
        return self._lost


class RayPool:
    """A pool of tasks on a Ray cluster, each of which runs the same process as in `LocalPool`.

    All machines of a cluster must see the same files, including this Python, at the same paths.

    Args:
        address: ``"local"`` to start Ray on this machine, or ``HOST:PORT`` of a cluster's head.
        slots: number of tasks at a time; None for as many as the CPUs of the cluster allow.
        threads: number of CPU threads of each task, which is also the number of CPUs that it reserves.
        gpus: share of a GPU that each task reserves.
        timeout: time to wait for an answer of the cluster, in seconds.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if ``address`` has another form.
        ConnectionError: if no cluster answers, or if Ray does not start on this machine.
    """

    def __init__(
        self,
        address: str,
        slots: int | None,
        threads: int = 1,
        gpus: float = 0.0,
        timeout: float = _TIMEOUT,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ImportError("--ray needs Ray: pip install 'safe_components[ray]'")
        if address != "local" and not re.fullmatch(r"[^:/]+:\d+", address):
            raise ValueError(f"ray is {address!r}, must be local or HOST:PORT")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray: Any = importlib.import_module("ray")  # optional, and slow to load
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            slots = slots or 1
            try:
                ray.init(
                    address="local",
                    num_cpus=slots * threads,
                    include_dashboard=False,
                    object_store_memory=80_000_000,  # the results are only exit statuses
                    **common,
                )
            except Exception as error:  # Ray raises it if its processes have not started within 30 s
                ray.shutdown()
                first = str(error).partition(". ")[0]
                raise ConnectionError(f"Ray did not start on this machine ({first}); is it busy?") from None
        else:
            _reach(address, timeout)
            ray.init(address=address, **common)
        self.slots = slots or max(int(ray.cluster_resources().get("CPU", 1)) // threads, 1)
        self._ray = ray
        # A task starts in another directory, but the parts of the user's own may lie in this one.
        places = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = library_threads(threads) | {"PYTHONPATH": os.pathsep.join(places)}
        for module in (pool, sys.modules[__name__]):  # so workers need not import this package and PyTorch
            ray.cloudpickle.register_pickle_by_value(module)
        self._run = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_until_done)

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Submit ``command`` and append its output to ``log``."""
        return _RayJob(self._ray, self._run.remote(spawn, list(command), str(log), self._environment))

    def close(self) -> None:
        """Disconnect from the cluster; stop Ray if this pool started it."""
        self._ray.shutdown()
