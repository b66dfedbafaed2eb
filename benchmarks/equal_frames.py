"""Runs of different lengths beside each other at the same number of frames, from the rows in ``docs``.

    python benchmarks/equal_frames.py results_ball_run:150000 results_half_cheetah:120000

prints the table of ``docs/results.md``: for each variant in ``docs/data/NAME/rows.csv`` what its runs have
after so many frames, seed by seed, and the minutes they take.
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


def measure(rows: np.ndarray, frames: int) -> tuple[float, float, float]:
    """Reward and cost of the last tenth of the frames up to ``frames``, and the share of costly episodes."""
    if rows[-1, 0] < frames:
        raise SystemExit(f"error: frames is {frames:,}, a run has {rows[-1, 0]:,.0f}: choose fewer")
    rows = rows[rows[:, 0] < frames * 1.01]  # a batch of frames may end a little later
    _, episodes, reward, cost, over = rows.T
    late = last_frames(rows[:, 0])
    return (
        episode_mean(reward[late], episodes[late]),
        episode_mean(cost[late], episodes[late]),
        episode_mean(over, episodes),
    )


def lines_of(name: str, frames: int) -> list[str]:
    """A line for each variant of ``docs/data/NAME``."""
    with (DATA / name / "seeds.csv").open(encoding="utf-8") as file:
        done = [row for row in csv.DictReader(file) if row["finished"] == "True"]
    runs: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    with (DATA / name / "rows.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs[row["variant"], row["seed"]].append([float(row[column]) for column in COLUMNS])
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in done):
        mine = [row for row in done if row["variant"] == variant]
        measured = [measure(np.array(runs[variant, row["seed"]]), frames) for row in mine]
        each = ", ".join(
            f"{reward:.{0 if abs(reward) > 99 else 1}f} / {cost:.1f}" for reward, cost, _ in measured
        )
        over = np.mean([share for *_, share in measured])
        seconds = np.mean([float(row["wall_seconds"]) / float(row["frames"]) for row in mine])
        lines.append(f"| {name} | {frames:,} | {variant} | {each} | {over:.0%} | {seconds * 1e5 / 60:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", metavar="NAME:FRAMES", help="directory under docs/data, frames")
    arguments = parser.parse_args()
    print("| task | frames | | reward / cost by seed | over | minutes |\n|---|---|---|---|---|---|")
    for what in arguments.what:
        name, _, frames = what.partition(":")
        print("\n".join(lines_of(name, int(frames))))


if __name__ == "__main__":
    main()
