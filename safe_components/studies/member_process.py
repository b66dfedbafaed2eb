"""The process of one member of a study.

    python member_process.py DIRECTORY TOTAL_FRAMES RECIPE

The process runs the recipe with ``--config DIRECTORY/member.yaml``. It continues from the newest checkpoint
in DIRECTORY, begins if there is no checkpoint, and exits at once if the run has finished. A second
process of the same member waits for the first. When the process of the study ends, the standard input of this
process ends, and the run is asked to save and exit.

The file runs as a script, so waiting and exiting work before anything heavy is imported.
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

__all__ = ["alone", "finished", "frames_reached", "mark_finished", "place_of"]

_MARKER = "finished"


def frames_reached(directory: Path) -> int:
    """Return the frames of the last complete row of a run's ``metrics.csv``; 0 without such a row."""
    path = directory / "metrics.csv"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        columns = file.readline().decode().strip().split(",")
        # Only the end of the file is read. It is far longer than a row.
        file.seek(max(file.tell(), path.stat().st_size - 8192))
        rows = file.read().decode().split("\n")[:-1]  # text after the last line end is incomplete
    cells = rows[-1].split(",") if rows else []
    return int(float(cells[columns.index("frames")])) if len(cells) == len(columns) else 0


def finished(directory: Path, total_frames: int) -> bool:
    """Tell whether a run ended normally after at least ``total_frames``."""
    marker = directory / _MARKER
    return marker.is_file() and int(marker.read_text()) >= total_frames


def mark_finished(directory: Path, total_frames: int) -> None:
    """Note that the run has ended normally, if it has reached ``total_frames``."""
    if frames_reached(directory) >= total_frames:
        partial = directory / f"{_MARKER}.partial"
        partial.write_text(str(total_frames))
        partial.replace(directory / _MARKER)


def place_of(directory: Path) -> list[str]:
    """Return the options that continue the run from its newest checkpoint, or begin it without one."""
    if any((directory / "checkpoint").glob("checkpoint-*")):
        return ["--resume", str(directory)]
    # It stopped before its first checkpoint; a run refuses a directory that holds a config.yaml.
    (directory / "config.yaml").unlink(missing_ok=True)
    return ["--run-dir", str(directory)]


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the lock of the directory, which the system releases when the process ends for any reason."""
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


def main(directory: Path, total_frames: int, recipe: Path) -> None:
    """Start, continue or skip the run."""
    with alone(directory):
        if finished(directory, total_frames):
            return
        sys.argv = [str(recipe), "--config", str(directory / "member.yaml"), *place_of(directory)]
        sys.path[0] = str(recipe.parent)  # as if the recipe had been started directly
        runpy.run_path(str(recipe), run_name="__main__")
        mark_finished(directory, total_frames)


if __name__ == "__main__":
    os.setpgrp()  # a terminal's Ctrl-C reaches this process only once, through the study
    _leave_with_parent()
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
