"""FSRL's update, in a process with a Python environment of its own that answers over pipes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from learner_gemm import Sizes

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "benchmarks" / "peers" / "fsrl_update.py"
DEFAULT_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
INSTALL = "make bench-peers"


class FsrlUpdate:
    """FSRL's CVPO update at given sizes.

    Args:
        sizes: sizes of networks and batches, with one cost critic and one or two reward critics.
        n_step: steps of its temporal-difference targets.
        transitions: number of transitions in its buffer.
        python: interpreter that FSRL is installed for.

    Attributes:
        flops: floating-point operations of one update, counted by PyTorch during the update.
        versions: versions of its packages.

    Raises:
        FileNotFoundError: if there is no such interpreter; the message names the command that makes it.
        RuntimeError: if the process ends; the message holds what it printed last.
    """

    def __init__(
        self, sizes: Sizes, n_step: int, transitions: int = 100_000, python: Path = DEFAULT_PYTHON
    ) -> None:
        if not python.exists():
            raise FileNotFoundError(f"{python} does not exist: '{INSTALL}' makes it and installs FSRL there")
        settings = dataclasses.asdict(sizes) | {"n_step": n_step, "transitions": transitions}
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process runs
        read, write = os.pipe()
        self._answers = os.fdopen(read)
        self._process = subprocess.Popen(
            [str(python), str(SERVER), json.dumps(settings), str(write)],
            stdin=subprocess.PIPE,
            stdout=self._messages,
            stderr=self._messages,
            pass_fds=(write,),
            text=True,
            bufsize=1,
            # Otherwise a request for two threads would be cut to one.
            env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        )
        os.close(write)  # the process has its own copy, and the answers end when the process does
        ready = self._answer()
        self.flops: int = ready["flops"]
        self.versions: dict[str, str] = ready["versions"]

    def seconds(self, updates: int, threads: int, clock: str) -> float:
        """Seconds of ``updates`` updates with ``threads`` threads, by its ``"wall"`` or ``"cpu"`` clock."""
        assert self._process.stdin is not None
        request = {"updates": updates, "threads": threads, "clock": clock}
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._answers.close()
        self._messages.close()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            self._process.wait()
            self._messages.seek(0)
            last = "".join(self._messages.readlines()[-5:])
            self.close()
            raise RuntimeError(f"FSRL's process ended; its last words:\n{last}")
        return json.loads(line)
