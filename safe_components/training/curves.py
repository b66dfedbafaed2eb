"""Learning curves of reward and cost, with the cost limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["plot_curves", "read_metrics"]


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a ``metrics.csv``; empty cells are NaN."""
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=float, ndmin=1, encoding="utf-8")
    return {name: table[name] for name in table.dtype.names or ()}


def plot_curves(
    metrics_files: Sequence[Path], limits: Sequence[float], output: Path, title: str = ""
) -> None:
    """Draw reward and cost over frames, with a thin line for training and a thick line for evaluation.

    Args:
        metrics_files: one ``metrics.csv`` per run (seed). The label of a run is the name of its directory, or
            of the file if it has another name.
        limits: the cost limit of each cost signal, drawn as a dashed line.
        output: picture to write; its suffix determines the format.
        title: title above the picture.
    """
    runs = [read_metrics(path) for path in metrics_files]
    costs = ["episode_cost"] + [f"episode_cost_{i}" for i in range(1, len(limits))]
    figure = Figure(figsize=(5.5 * (1 + len(limits)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(limits), squeeze=False)[0]
    for axis, name in zip(axes, ["episode_reward", *costs], strict=True):
        evaluated = name.replace("episode", "eval")
        for index, run in enumerate(runs):
            color = f"C{index % 10}"
            path = metrics_files[index]
            name_of_run = path.parent.name if path.name == "metrics.csv" else path.stem
            label = name_of_run if len(runs) > 1 else "training (sampled actions)"
            axis.plot(run["frames"], run[name], color=color, linewidth=1, alpha=0.6, label=label)
            if evaluated in run and np.isfinite(run[evaluated]).any():
                there = np.isfinite(run[evaluated])
                axis.plot(
                    run["frames"][there],
                    run[evaluated][there],
                    color=color,
                    linewidth=2,
                    marker="o",
                    markersize=3,
                    label=None if len(runs) > 1 else "evaluation (mean action)",
                )
        axis.set_xlabel("environment frames")
        axis.set_ylabel(name.replace("_", " "))
        axis.grid(alpha=0.3)
    for axis, limit in zip(axes[1:], limits, strict=True):
        axis.axhline(limit, color="black", linestyle="--", linewidth=1.2, label=f"limit {limit:g}")
        axis.set_ylim(bottom=0)
    axes[-1].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(output, dpi=110)
