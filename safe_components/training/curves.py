"""Pictures of a run: learning curves with the cost limits, and the diagnosis of its improvements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from safe_components.training.options import cost_suffixes

__all__ = ["plot_curves", "plot_diagnosis", "read_metrics", "with_gaps"]

Metrics: TypeAlias = Mapping[str, np.ndarray]


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a ``metrics.csv``; empty cells are NaN."""
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=float, ndmin=1, encoding="utf-8")
    return {name: table[name] for name in table.dtype.names or ()}


def with_gaps(frames: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a curve that exist, with a NaN wherever points are missing between two of them.

    Points are missing where two of them are further apart than one and a half times the median distance. A
    line through the result has a gap there.

    Args:
        frames: position of each point, ``[n]``, increasing.
        values: value of each point, ``[n]``; NaN where there is none.

    Example:
        >>> with_gaps(np.array([1.0, 2, 3, 4, 5]), np.array([7.0, 8, np.nan, 9, 9]))
        (array([1., 2., 3., 4., 5.]), array([ 7.,  8., nan,  9.,  9.]))
    """
    there = np.isfinite(values)
    x, y = frames[there].astype(float), values[there]
    distance = np.diff(x)
    after = np.flatnonzero(distance > 1.5 * np.median(distance)) + 1 if len(distance) else np.empty(0, int)
    middles = [(x[index - 1] + x[index]) / 2 for index in after]
    return np.insert(x, after, middles), np.insert(y, after, np.nan)


def plot_curves(
    runs: Mapping[str, Metrics],
    limits: Sequence[float],
    output: Path,
    title: str = "",
    suffixes: Sequence[str] | None = None,
) -> None:
    """Draw reward and cost over frames, with a thin line for training and a thick line for evaluation.

    Args:
        runs: columns of the ``metrics.csv`` of each run (seed), by the label of the run.
        limits: the cost limit of each cost signal, drawn as a dashed line.
        output: picture to write; its suffix determines the format.
        title: title above the picture.
        suffixes: ends of the names of the costs, from `cost_suffixes`; None numbers them.
    """
    names = cost_suffixes((), len(limits)) if suffixes is None else suffixes
    costs = [f"episode_cost{name}" for name in names]
    figure = Figure(figsize=(5.5 * (1 + len(limits)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(limits), squeeze=False)[0]
    for axis, name in zip(axes, ["episode_reward", *costs], strict=True):
        evaluated = name.replace("episode", "eval")
        for index, (label, run) in enumerate(runs.items()):
            color = f"C{index % 10}"
            trained = label if len(runs) > 1 else "training (sampled actions)"
            _line(axis, run, name, color=color, linewidth=1, alpha=0.6, label=trained)
            if evaluated in run and np.isfinite(run[evaluated]).any():
                _line(
                    axis,
                    run,
                    evaluated,
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


def plot_diagnosis(
    run: Metrics,
    limits: Sequence[float],
    output: Path,
    title: str = "",
    suffixes: Sequence[str] | None = None,
) -> None:
    """Draw the links of the policy improvement: promise and delivery, episodes, and calibration.

    There is a row of panels for the reward, and one for the first cost if there is a cost.

    Args:
        run: columns of the ``metrics.csv`` of a run of CVPO.
        limits: the cost limit of each cost signal; the first one is drawn.
        output: picture to write; its suffix determines the format.
        title: title above the picture.
        suffixes: ends of the names of the costs, from `cost_suffixes`; None numbers them.

    Raises:
        ValueError: if the columns hold no diagnosis.
    """
    if "promised_reward" not in run:
        raise ValueError("there is no column promised_reward: only CVPO writes a diagnosis")
    names = {"reward": "C0"}
    if limits:
        names[f"cost{suffixes[0]}" if suffixes else "cost"] = "C3"
    figure = Figure(figsize=(13, 3.2 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), 3, sharex=True, squeeze=False)
    for row, (name, color) in zip(axes, names.items(), strict=True):
        gain, episodes, slope = row
        for link, style in (("promised", "-"), ("delivered", ":")):
            _line(gain, run, f"{link}_{name}", color=color, linestyle=style, label=link)
        gain.axhline(0.0, color="black", linewidth=0.8)
        gain.set_ylabel(f"change of the {name}, in spreads")
        _line(episodes, run, f"episode_{name}", color=color, label="episodes")
        episodes.set_ylabel(f"episode {name}")
        _line(slope, run, f"slope_{name}", color=color, label="slope")
        if f"slope_{name}" in run:
            error = run[f"slope_error_{name}"]
            below, above = run[f"slope_{name}"] - error, run[f"slope_{name}"] + error
            slope.fill_between(run["frames"], below, above, color=color, alpha=0.2, linewidth=0)
        slope.axhline(1.0, color="black", linestyle="--", linewidth=1.2, label="right")
        slope.axhline(0.0, color="black", linewidth=0.8, label="noise")
        slope.set_ylim(-0.5, 2.0)
        slope.set_ylabel(f"calibration of the {name}'s critic")
    if limits:
        said = f"limit {limits[0]:g}"
        axes[1][1].axhline(limits[0], color="black", linestyle="--", linewidth=1.2, label=said)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("environment frames")
    figure.suptitle(title)
    figure.savefig(output, dpi=110)


def _line(axis: Axes, run: Metrics, name: str, **style: Any) -> None:
    """Draw the points that exist of a column, with gaps where points are missing."""
    if name in run:
        frames, values = with_gaps(run["frames"], run[name])
        axis.plot(frames, values, **style)
        alone = _alone(values)
        axis.plot(frames[alone], values[alone], ".", color=style.get("color"), markersize=3)


def _alone(values: np.ndarray) -> np.ndarray:
    """Tell which points have no neighbor, so that no line shows them."""
    there = np.pad(np.isfinite(values), 1)
    alone: np.ndarray = there[1:-1] & ~there[:-2] & ~there[2:]
    return alone
