"""A figure of the learning curves of several variants, each over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from safe_components.training import with_gaps
from safe_components.training.options import cost_suffixes

__all__ = ["over_seeds", "plot_comparison"]

Metrics = Mapping[str, np.ndarray]
_GRID = 200
_COLORS = [f"C{index}" for index in range(10)]
_STYLES = ["-", "--", ":", "-."]


def over_seeds(runs: Sequence[Metrics], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the interquartile mean and the quartiles of a metric over seeds, on a common grid of frames.

    Each seed is interpolated linearly between its rows. It has no value before its first row, after its last
    row, and where rows are missing (see `with_gaps`).

    Args:
        runs: columns of each seed's ``metrics.csv``; at least ``frames`` and ``name``.
        name: name of the metric.

    Returns:
        ``frames``, ``mean``, ``low`` and ``high``, ``[points]`` each. They are empty if no seed has a number.

    Example:
        >>> runs = [{"frames": np.array([0.0, 10.0]), "x": np.array([0.0, y])} for y in (1.0, 2.0, 6.0)]
        >>> frames, mean, low, high = over_seeds(runs, "x")
        >>> [float(x[-1]) for x in (frames, mean, low, high)]
        [10.0, 3.0, 1.5, 4.0]
    """
    lines = []
    for run in runs:
        frames, values = with_gaps(run["frames"], run[name]) if name in run else (np.empty(0),) * 2
        if len(frames):
            lines.append((frames, values))
    if not lines:
        return (np.empty(0),) * 4
    start, end = min(frames[0] for frames, _ in lines), max(frames[-1] for frames, _ in lines)
    grid = np.linspace(start, end, _GRID if end > start else 1)
    table = np.stack([np.interp(grid, *line, left=np.nan, right=np.nan) for line in lines])
    counts = np.isfinite(table).sum(0)
    grid, table, counts = grid[counts > 0], np.sort(table[:, counts > 0], axis=0), counts[counts > 0]
    mean, low, high = np.empty((3, len(grid)))
    for count in np.unique(counts):  # NaN sorts last
        here = counts == count
        mean[here] = stats.trim_mean(table[:count, here], 0.25, axis=0)
        low[here], high[here] = np.percentile(table[:count, here], [25, 75], axis=0)
    return grid, mean, low, high


def _legend(label: str, seeds: int) -> str:
    return "\n".join(textwrap.wrap(f"{label} ({seeds} seed{'s' if seeds != 1 else ''})", 36))


def plot_comparison(
    variants: Mapping[str, Sequence[Metrics]],
    limits: Sequence[float],
    output: Path,
    title: str = "",
    suffixes: Sequence[str] | None = None,
) -> None:
    """Draw reward and each cost of the training episodes over frames, one line per variant.

    Lines are interquartile means over seeds. Bands reach from the first to the third quartile. Axes are
    linear, and limits are dashed lines.

    Args:
        variants: columns of each seed's ``metrics.csv``, by label.
        limits: limits of the episodic cost, one per cost signal.
        output: file to write; its suffix determines the format.
        title: text above the figure.
        suffixes: ends of the names of the costs, from `cost_suffixes`; None numbers them.

    Raises:
        ValueError: if no variant has a row.
    """
    if not any(len(run["frames"]) for runs in variants.values() for run in runs):
        raise ValueError("there is nothing to draw: no variant has a row of metrics")
    costs = cost_suffixes((), len(limits)) if suffixes is None else suffixes
    names = ["episode_reward", *(f"episode_cost{suffix}" for suffix in costs)]
    # A legend beside the panels stays readable with many variants. It determines the smallest height.
    texts = {label: _legend(label, len(runs)) for label, runs in variants.items()}
    height = max(3.8, 1.0 + 0.23 * (1 + sum(1 + text.count("\n") for text in texts.values())))
    longest = max(len(line) for text in texts.values() for line in text.split("\n"))
    figure = Figure(figsize=(5.0 * len(names) + 0.5 + 0.075 * longest, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        for index, (label, runs) in enumerate(variants.items()):
            frames, mean, low, high = over_seeds(runs, name)
            color = _COLORS[index % len(_COLORS)]
            style = _STYLES[index // len(_COLORS) % len(_STYLES)]
            dot = "o" if len(frames) == 1 else None  # one row does not make a line
            panel.plot(frames, mean, color=color, ls=style, lw=1.8, marker=dot, label=texts[label])
            panel.fill_between(frames, low, high, color=color, alpha=0.13, linewidth=0)
        panel.set_xlabel("environment frames")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_ylabel(name.replace("_", " "))
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    for panel, limit in zip(panels[1:], limits, strict=True):
        handles.append(panel.axhline(limit, color="black", linestyle="--", linewidth=1.4))
        labels.append(f"limit {limit:g}")
        panel.set_ylim(bottom=0)
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle(title)
    figure.savefig(output, dpi=110)
