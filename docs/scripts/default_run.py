"""Draw the figure and print the table of ``docs/default_run.md``, from the rows in ``docs/data``.

    python recipes/cvpo.py --seed 22 --run-dir runs/seed-22      # and 23, 24
    python docs/scripts/default_run.py --runs runs/seed-22 runs/seed-23 runs/seed-24

The ``metrics.csv`` of the runs are copied to ``docs/data`` first. Without ``--runs``, the figure and the
table are made from the rows that are there.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from columns import DOCS

from safe_components.studies.statistics import episode_mean
from safe_components.training import plot_curves, read_metrics

DATA = DOCS / "data" / "cvpo_point_circle"
LIMIT = 25.0
LAST = 20_000


def row(path: Path) -> str:
    """Format a run's row of the table: means over its last frames, and its last evaluation."""
    run = read_metrics(path)
    late = run["frames"] > run["frames"][-1] - LAST

    def mean(name: str, chosen: np.ndarray | slice = slice(None)) -> float:
        return episode_mean(run[name][chosen], run["episodes"][chosen])

    numbers = [
        f"{run['episode_reward'][0]:.1f} / {run['episode_cost'][0]:.0f}",
        f"{mean('episode_reward', late):.1f} / {mean('episode_cost', late):.1f}",
        f"{run['eval_reward'][-1]:.1f} / {run['eval_cost'][-1]:.1f}",
        f"{100 * mean('episode_violation_rate'):.0f} %",
        f"{run['wall_seconds'][-1] / 60:.1f} min",
    ]
    return f"| {path.stem} | " + " | ".join(numbers) + " |"


def main() -> None:
    """Copy the rows of finished runs, if there are any; draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=Path, nargs="*", default=[], help="run directories to take the rows from"
    )
    for run_dir in parser.parse_args().runs:
        DATA.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run_dir / "metrics.csv", DATA / f"{run_dir.name}.csv")
    files = sorted(DATA.glob("*.csv"))
    if not files:
        raise SystemExit(f"error: {DATA} holds no rows; name finished runs with --runs")
    (DOCS / "figures").mkdir(exist_ok=True)
    figure = DOCS / "figures" / "cvpo_point_circle.png"
    runs = {path.stem: read_metrics(path) for path in files}
    plot_curves(runs, [LIMIT], figure, title="CVPO, SafetyPointCircle1-v0, limit 25")
    print(
        "| run | first episodes, reward / cost | last 20,000 frames, training | last evaluation "
        "| training episodes over the limit | wall time |\n" + "|---" * 6 + "|"
    )
    print("\n".join(row(path) for path in files))


if __name__ == "__main__":
    main()
