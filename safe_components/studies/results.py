"""The result files of a study: ``table.csv``, ``table.md``, ``seeds.csv`` and ``curves.png``."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safe_components.studies.figure import plot_comparison
from safe_components.studies.member_process import finished
from safe_components.studies.record import read_study
from safe_components.studies.statistics import (
    Summary,
    episode_mean,
    frames_to_best,
    frames_to_safe,
    last_frames,
    summarize,
)
from safe_components.training.options import cost_suffixes

__all__ = ["Column", "columns_of", "measure", "write_results"]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the tables."""

    name: str
    """name in the CSV files"""
    heading: str
    """heading in the Markdown table"""
    form: Callable[[float], str]
    """function that formats a number"""
    missing: str = "–"
    """text in place of a number if no seed has one"""


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def columns_of(suffixes: Sequence[str] = ("",)) -> list[Column]:
    """Return the columns for cost signals with these ends of their names; docs/studies.md defines them."""
    frames = "{:,.0f}".format
    within = (
        Column("violation_rate", "episodes over a limit", "{:.1%}".format),
        Column("frames_to_safe", "frames to safe", frames, "never"),
    )
    return [
        Column("reward", "reward", _number),
        *(Column(f"cost{s}", f"cost{s.replace('_', ' ')}", _number) for s in suffixes),
        Column("eval_reward", "evaluated reward", _number),
        *(Column(f"eval_cost{s}", f"evaluated cost{s.replace('_', ' ')}", _number) for s in suffixes),
        *(within if suffixes else ()),
        Column("frames_to_best", "frames to 90 % of best", frames, "never"),
        Column("wall_seconds", "wall time, s", frames),
    ]


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a ``metrics.csv`` that may still be growing; empty cells are NaN."""
    if not path.is_file():
        return {"frames": np.empty(0)}
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    table = list(csv.DictReader(whole))
    names = list(table[0]) if table else ["frames"]
    return {name: np.array([float(row[name] or "nan") for row in table]) for name in names}


def measure(
    run: Mapping[str, np.ndarray], limits: Sequence[float], suffixes: Sequence[str] = ("",)
) -> dict[str, float]:
    """Return the numbers of the table for one finished run.

    Args:
        run: columns of the run's ``metrics.csv``.
        limits: limits of the episodic cost, m numbers.
        suffixes: ends of the names of the costs, from `cost_suffixes`.
    """
    frames, episodes, reward = run["frames"], run["episodes"], run["episode_reward"]
    cost = np.array([run[f"episode_cost{s}"] for s in suffixes]).reshape(len(suffixes), len(frames)).T
    late = last_frames(frames)

    def last(name: str) -> float:
        values = run.get(name, np.empty(0))
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else math.nan

    return {
        "reward": episode_mean(reward[late], episodes[late]),
        **{f"cost{s}": episode_mean(cost[late, i], episodes[late]) for i, s in enumerate(suffixes)},
        "eval_reward": last("eval_reward"),
        **{f"eval_cost{s}": last(f"eval_cost{s}") for s in suffixes},
        "violation_rate": episode_mean(run["episode_violation_rate"], episodes),
        "frames_to_safe": frames_to_safe(frames, cost, episodes, limits),
        "frames_to_best": frames_to_best(frames, reward, cost, episodes, limits),
        "wall_seconds": float(run["wall_seconds"][-1]),
    }


def _cell(column: Column, summary: Summary, done: int) -> str:
    if not summary.count:
        return column.missing if done else "–"
    text = column.form(summary.mean)
    if not math.isnan(summary.low):
        text += f" [{column.form(summary.low)}, {column.form(summary.high)}]"
    return text if summary.count == done else f"{text} ({summary.count} of {done} seeds)"


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        for row in rows:
            numbers = {k: f"{v:.8g}" for k, v in row.items() if isinstance(v, float) and not math.isnan(v)}
            blanks = {k: "" for k, v in row.items() if isinstance(v, float) and math.isnan(v)}
            out.writerow({**row, **numbers, **blanks})


def write_results(directory: Path) -> Path:
    """Write the tables and the figure from the existing rows; return the path of the Markdown table.

    The table uses only finished members and states their number. The figure draws all rows.

    Raises:
        FileNotFoundError: if the directory holds no study.
        ValueError: if the study is of an older layout.
    """
    study = read_study(directory)
    variants = study["variants"]
    first = next(iter(variants.values()))
    limits = first["settings"]["budget.cost_limit"]
    suffixes = cost_suffixes(first["settings"]["env.cost_keys"], len(limits))
    columns = columns_of(suffixes)
    curves, seeds, table, lines = {}, [], [], []
    for label, entry in variants.items():
        places = [directory / entry["place"] / f"seed-{seed}" for seed in entry["seeds"]]
        runs = [read_rows(place / "metrics.csv") for place in places]
        done = [finished(place, entry["total_frames"]) for place in places]
        curves[label] = [run for run in runs if len(run["frames"])]
        measured = []
        for seed, run, over in zip(entry["seeds"], runs, done, strict=True):
            values = measure(run, limits, suffixes) if over else {column.name: math.nan for column in columns}
            measured.append(values)
            last = int(run["frames"][-1]) if len(run["frames"]) else 0
            seeds.append({"variant": label, "seed": seed, "frames": last, "finished": over, **values})
        summaries = {c.name: summarize([values[c.name] for values in measured]) for c in columns}
        # A run collects whole batches, so it may exceed total_frames by up to one batch.
        reached = [int(run["frames"][-1]) for run, over in zip(runs, done, strict=True) if over]
        frames = max(reached, default=entry["total_frames"])
        row: dict[str, Any] = {"variant": label, "frames": frames, "seeds": len(done)}
        row["finished"] = sum(done)
        for name, s in summaries.items():
            row |= {name: s.mean, f"{name}_low": s.low, f"{name}_high": s.high, f"{name}_n": s.count}
        table.append(row)
        count = str(len(done)) if all(done) else f"{sum(done)} of {len(done)}"
        cells = [_cell(column, summaries[column.name], sum(done)) for column in columns]
        lines.append(f"| {label} | {count} | {frames:,} | " + " | ".join(cells) + " |")
    _write_csv(directory / "table.csv", table)
    _write_csv(directory / "seeds.csv", seeds)
    head = ["variant", "seeds", "frames", *(column.heading for column in columns)]
    said = f"limit {', '.join(f'{limit:g}' for limit in limits)}" if limits else "no cost"
    where = f"{first['settings']['env.id']}, {said}"
    note = (
        f"{where}. Interquartile mean over the seeds that finished, in brackets its 95 % bootstrap interval; "
        "a count of seeds beside a number says how many of them have it."
    )
    text = [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *lines,
        "",
        note,
        "",
        f"    {study['command']}",
    ]
    path = directory / "table.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    if any(curves.values()):
        plot_comparison(curves, limits, directory / "curves.png", where, suffixes)
    return path
