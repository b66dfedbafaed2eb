"""Columns of the metrics of runs side by side: the figures of weak spots in ``docs/results.md``.

    python benchmarks/weak_spots.py --figure velocity \
        --run "small steps" runs/a --run "no feedback" runs/b
    python benchmarks/weak_spots.py --figure early_ends --run "seed 10" runs/c \
        --panels episode_length episode_cost estep_cost+q_cost_limit

A panel is a column, or two: the second is drawn as dots where it has numbers. The rows of each run (the
columns that are drawn) are kept in ``docs/data/weak_spots/FIGURE.csv``; without ``--run`` the figure is drawn
again from there. ``episode_length`` is the mean of a row, from its frames and episodes.
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
PANELS = ("episode_reward+eval_reward", "episode_cost+eval_cost", "entropy")


def columns_of(panels: list[str]) -> list[str]:
    return ["frames", *(column for panel in panels for column in panel.split("+"))]


def keep(path: Path, runs: list[list[str]], columns: list[str]) -> None:
    """The drawn columns of all runs in one file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["run", *columns])
        for label, directory in runs:
            metrics = read_metrics(Path(directory) / "metrics.csv")
            with np.errstate(divide="ignore"):
                metrics["episode_length"] = np.diff(metrics["frames"], prepend=0) / metrics["episodes"]
            for row in zip(*(metrics[column] for column in columns), strict=True):
                out.writerow([label, *(f"{number:.5g}" for number in row)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", required=True, help="name of the files in docs")
    parser.add_argument("--run", nargs=2, action="append", default=[], metavar=("LABEL", "DIRECTORY"))
    parser.add_argument("--panels", nargs="+", default=list(PANELS), metavar="COLUMN[+COLUMN]")
    parser.add_argument("--limit", type=float, default=25.0)
    arguments = parser.parse_args()
    path = DOCS / "data" / "weak_spots" / f"{arguments.figure}.csv"
    columns = columns_of(arguments.panels)
    if arguments.run:
        path.parent.mkdir(exist_ok=True)
        keep(path, arguments.run, columns)
    rows: dict[str, list[list[float]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["run"]].append([float(row[column]) for column in columns])

    figure, axes = plt.subplots(1, len(arguments.panels), figsize=(12, 3.6), layout="constrained")
    for axis, panel in zip(axes, arguments.panels, strict=True):
        line_column, *dots_column = panel.split("+")
        for label, numbers in rows.items():
            drawn = dict(zip(columns, np.array(numbers).T, strict=True))
            (line,) = axis.plot(drawn["frames"], drawn[line_column], label=label)
            for column in dots_column:
                there = np.isfinite(drawn[column])
                axis.plot(
                    drawn["frames"][there],
                    drawn[column][there],
                    "o--",
                    markersize=4,
                    linewidth=0.8,
                    color=line.get_color(),
                )
        title = line_column.removeprefix("episode_").replace("_", " ")
        dots = f" (dots: {dots_column[0].replace('_', ' ')})" if dots_column else ""
        axis.set(xlabel="frames", ylabel=title + dots)
        if line_column == "episode_cost":
            axis.axhline(arguments.limit, color="black", linewidth=0.8, linestyle=":")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, loc="outside upper center", ncols=len(rows))
    figure.savefig(DOCS / "figures" / f"{arguments.figure}.png", dpi=130)


if __name__ == "__main__":
    main()
