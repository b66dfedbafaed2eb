"""Runs of different lengths beside each other at the same number of frames, from the rows in ``docs``.

    python benchmarks/equal_frames.py --name results_ball_run --frames 150000

prints the tables of ``docs/results.md``: what each run of ``docs/data/NAME/rows.csv`` has by then.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from safe_components.training import episode_mean, last_frames

DATA = Path(__file__).parents[1] / "docs" / "data"
COLUMNS = ("frames", "episodes", "episode_reward", "episode_cost", "episode_violation_rate")


def measure(rows: np.ndarray, frames: float) -> tuple[float, float, float]:
    """Reward and cost of the last tenth of the frames up to ``frames``, and the share of costly episodes."""
    if rows[-1, 0] < frames:
        raise ValueError(f"frames is {frames:,.0f}, the run has {rows[-1, 0]:,.0f}: choose fewer")
    rows = rows[rows[:, 0] < frames * 1.01]  # a batch of frames may end a little later
    _, episodes, reward, cost, over = rows.T
    late = last_frames(rows[:, 0])
    return (
        episode_mean(reward[late], episodes[late]),
        episode_mean(cost[late], episodes[late]),
        episode_mean(over, episodes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="directory under docs/data")
    parser.add_argument("--frames", type=float, required=True)
    arguments = parser.parse_args()
    runs: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    with (DATA / arguments.name / "rows.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs[row["variant"], row["seed"]].append([float(row[column]) for column in COLUMNS])
    print(f"| {arguments.frames:,.0f} frames | reward | cost | over |\n|---|---|---|---|")
    for (variant, seed), rows in runs.items():
        reward, cost, over = measure(np.array(rows), arguments.frames)
        print(f"| {variant}, seed {seed} | {reward:.4g} | {cost:.1f} | {over:.0%} |")


if __name__ == "__main__":
    main()
