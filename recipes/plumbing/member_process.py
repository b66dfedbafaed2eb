"""One member of a study, as a process of its own.

    python member_process.py DIRECTORY TOTAL_FRAMES RECIPE FLAG...

Runs the recipe in DIRECTORY: from its newest checkpoint if it has one, from the start if not, not at all if
it has finished. One process at a time does so; a second waits. When whoever started the process is gone, and
the pipe to its standard input with it, the run is asked to save and leave.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["finished", "frames_reached"]

_MARKER = "finished"


def frames_reached(directory: Path) -> int:
    """Frames of the last whole row of a run's ``metrics.csv``; 0 without one."""
    path = directory / "metrics.csv"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        columns = file.readline().decode().strip().split(",")
        # A row is far shorter than this, and the file grows with the run.
        file.seek(max(file.tell(), path.stat().st_size - 8192))
        rows = file.read().decode().split("\n")[:-1]  # what follows the last line's end is not whole
    cells = rows[-1].split(",") if rows else []
    return int(float(cells[columns.index("frames")])) if len(cells) == len(columns) else 0


def finished(directory: Path, total_frames: int) -> bool:
    """Whether a run ended well after at least ``total_frames``."""
    marker = directory / _MARKER
    return marker.is_file() and int(marker.read_text()) >= total_frames


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, which the system takes back however the process ends."""
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for an earlier process of this run to save and leave", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _leave_with_parent() -> None:
    """Send this process SIGTERM when its standard input ends."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(directory: Path, total_frames: int, recipe: Path, flags: list[str]) -> None:
    """Start, continue or skip the run."""
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        if finished(directory, total_frames):
            return
        if any((directory / "checkpoint").glob("checkpoint-*")):
            place = ["--resume", str(directory)]
        else:  # stopped before its first checkpoint: a run refuses a directory that holds a configuration
            (directory / "config.yaml").unlink(missing_ok=True)
            place = ["--run-dir", str(directory)]
        sys.argv = [str(recipe), *flags, *place]
        sys.path[0] = str(recipe.parent)  # as if the recipe had been started itself
        runpy.run_path(str(recipe), run_name="__main__")
        if frames_reached(directory) >= total_frames:
            partial = directory / f"{_MARKER}.partial"
            partial.write_text(str(total_frames))
            partial.replace(directory / _MARKER)


if __name__ == "__main__":
    os.setpgrp()  # a terminal's Ctrl-C reaches this process once, through the study
    _leave_with_parent()
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
