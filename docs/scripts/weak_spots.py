"""Draw columns of the metrics of runs side by side: the figures of ``docs/notebook/weak_spots.md``.

    python docs/scripts/weak_spots.py --figure velocity \
        --run "small steps" runs/a --run "no feedback" runs/b
    python docs/scripts/weak_spots.py --figure early_ends --run "seed 10" runs/c \
        --panels episode_length episode_cost estep_cost+q_cost_limit

A panel is one column or two. The second column is drawn as dots where it has numbers. The rows of each run
are kept in ``docs/data/weak_spots/FIGURE.csv``. Without ``--run``, the figure is drawn again from these rows.
``episode_length`` is the mean of a row, from its frames and episodes.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from columns import DOCS, write_columns
from matplotlib.axes import Axes

from safe_components.training import read_metrics

PANELS = ("episode_reward+eval_reward", "episode_cost+eval_cost", "entropy")


def with_length(run_dir: Path) -> dict[str, np.ndarray]:
    """Read the metrics of a run, and add the mean length of the episodes of each row."""
    metrics = read_metrics(run_dir / "metrics.csv")
    with np.errstate(divide="ignore"):
        length = np.diff(metrics["frames"], prepend=0) / metrics["episodes"]
    return metrics | {"episode_length": length}


def draw(axis: Axes, panel: str, runs: Mapping[str, Mapping[str, np.ndarray]], limit: float) -> None:
    """Draw one panel: a line for the first column of each run, dots for the second."""
    line_column, *dots_columns = panel.split("+")
    for label, run in runs.items():
        (line,) = axis.plot(run["frames"], run[line_column], label=label)
        for column in dots_columns:
            there, style = np.isfinite(run[column]), {"markersize": 4, "linewidth": 0.8}
            axis.plot(run["frames"][there], run[column][there], "o--", color=line.get_color(), **style)
    title = line_column.removeprefix("episode_").replace("_", " ")
    dots = f" (dots: {dots_columns[0].replace('_', ' ')})" if dots_columns else ""
    axis.set(xlabel="frames", ylabel=title + dots)
    if line_column == "episode_cost":
        axis.axhline(limit, color="black", linewidth=0.8, linestyle=":")


def main() -> None:
    """Keep the rows of the runs, if there are any, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", required=True, help="name of the files in docs")
    parser.add_argument("--run", nargs=2, action="append", default=[], metavar=("LABEL", "DIRECTORY"))
    parser.add_argument("--panels", nargs="+", default=list(PANELS), metavar="COLUMN[+COLUMN]")
    parser.add_argument("--limit", type=float, default=25.0, help="cost limit, drawn as a line")
    arguments = parser.parse_args()
    path = DOCS / "data" / "weak_spots" / f"{arguments.figure}.csv"
    columns = ["frames", *(column for panel in arguments.panels for column in panel.split("+"))]
    if arguments.run:
        runs = (((label,), with_length(Path(directory))) for label, directory in arguments.run)
        write_columns(path, ("run",), columns, runs)
    rows: dict[str, list[list[float]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["run"]].append([float(row[column]) for column in columns])
    drawn = {label: dict(zip(columns, np.array(numbers).T, strict=True)) for label, numbers in rows.items()}

    figure, axes = plt.subplots(1, len(arguments.panels), figsize=(12, 3.6), layout="constrained")
    for axis, panel in zip(axes, arguments.panels, strict=True):
        draw(axis, panel, drawn, arguments.limit)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, loc="outside upper center", ncols=len(rows))
    figure.savefig(DOCS / "figures" / f"{arguments.figure}.png", dpi=130)


if __name__ == "__main__":
    main()
