"""The time of finished runs by phase: waiting for the environments, learning, evaluating, saving, logging.

    python benchmarks/split.py runs/cvpo-... runs/cvpo-...

prints a line per run, from the ``seconds_...`` columns of its ``metrics.csv`` (docs/metrics.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from safe_components.training import read_metrics

PHASES = ("collecting", "learning", "evaluating", "saving", "logging")
HEAD = ["run", "frames", "seconds", "frames/s", *(f"{phase}, %" for phase in PHASES), "unsaid, %"]


def split(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Frames, wall seconds, and the share of each phase; ``unsaid`` is the share outside all phases.

    The checkpoint that ends a run is written after its last row. ``saving`` and ``seconds`` count it with the
    mean duration of the earlier checkpoints, if there are any.

    Args:
        rows: columns of a ``metrics.csv``.

    Raises:
        ValueError: if the rows hold no times.
    """
    if "seconds_learning" not in rows or not rows["frames"].size:
        raise ValueError("holds no seconds_... columns: the run is of an older version, or has no row yet")
    spent = {phase: float(rows[f"seconds_{phase}"].sum()) for phase in PHASES}
    wall = float(rows["wall_seconds"][-1])
    unsaid = wall - sum(spent.values())
    if saves := np.count_nonzero(rows["seconds_saving"]):
        last = spent["saving"] / saves
        spent["saving"] += last
        wall += last
    shares = {phase: seconds / wall for phase, seconds in (*spent.items(), ("unsaid", unsaid))}
    return {"frames": float(rows["frames"][-1]), "seconds": wall, **shares}


def line(name: str, parts: dict[str, float]) -> str:
    """Format a run's row of the table."""
    shares = [f"{100 * parts[phase]:.2f}" for phase in (*PHASES, "unsaid")]
    speed = parts["frames"] / parts["seconds"]
    cells = [name, f"{parts['frames']:,.0f}", f"{parts['seconds']:.1f}", f"{speed:.0f}", *shares]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, or their metrics.csv")
    print(f"| {' | '.join(HEAD)} |\n" + "|---" * len(HEAD) + "|")
    for run in parser.parse_args().runs:
        path = run / "metrics.csv" if run.is_dir() else run
        try:
            print(line(run.name, split(read_metrics(path))), flush=True)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {path}: {error}") from None


if __name__ == "__main__":
    main()
