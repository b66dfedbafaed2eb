"""Reward, cost and entropy of runs, sampled actions and the mean action: a figure of ``docs/results.md``.

    python benchmarks/weak_spots.py --figure velocity \
        --run "small steps" runs/a --run "no feedback" runs/b

The rows of each run (the columns that are drawn) are kept in ``docs/data/weak_spots/FIGURE.csv``; without
``--run`` the figure is drawn again from there.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from safe_components.training import read_metrics

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("frames", "episode_reward", "episode_cost", "eval_reward", "eval_cost", "entropy")


def keep(path: Path, runs: list[list[str]]) -> None:
    """The drawn columns of all runs in one file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["run", *COLUMNS])
        for label, directory in runs:
            metrics = read_metrics(Path(directory) / "metrics.csv")
            for row in zip(*(metrics[column] for column in COLUMNS), strict=True):
                out.writerow([label, *(f"{number:.5g}" for number in row)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", required=True, help="name of the files in docs")
    parser.add_argument("--run", nargs=2, action="append", default=[], metavar=("LABEL", "DIRECTORY"))
    parser.add_argument("--limit", type=float, default=25.0)
    arguments = parser.parse_args()
    path = DOCS / "data" / "weak_spots" / f"{arguments.figure}.csv"
    if arguments.run:
        path.parent.mkdir(exist_ok=True)
        keep(path, arguments.run)
    rows: dict[str, list[list[float]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["run"]].append([float(row[column]) for column in COLUMNS])

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for label, numbers in rows.items():
        columns = dict(zip(COLUMNS, np.array(numbers).T, strict=True))
        for axis, quantity in zip(axes[:2], ("reward", "cost"), strict=True):
            (line,) = axis.plot(columns["frames"], columns[f"episode_{quantity}"], label=label)
            evaluated = np.isfinite(columns[f"eval_{quantity}"])
            axis.plot(
                columns["frames"][evaluated],
                columns[f"eval_{quantity}"][evaluated],
                "o--",
                markersize=4,
                linewidth=0.8,
                color=line.get_color(),
            )
            axis.set(xlabel="frames", ylabel=quantity)
        axes[2].plot(columns["frames"], columns["entropy"])
    axes[2].set(xlabel="frames", ylabel="entropy (nats)")
    axes[1].axhline(arguments.limit, color="black", linewidth=0.8, linestyle=":")
    axes[0].legend(title="sampled (lines), mean action (dots)", fontsize=8, title_fontsize=8)
    figure.savefig(DOCS / "figures" / f"{arguments.figure}.png", dpi=130)


if __name__ == "__main__":
    main()
