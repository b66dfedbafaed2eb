"""Draw the figure and print the table of "One set of defaults" in ``docs/results/index.md``.

    python docs/scripts/one_default.py --runs RUN_DIR ...

Rows of finished runs go to ``docs/data/one_default`` first, one file a run. Without ``--runs``, the figure
and the table are made from the rows that are there.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from columns import DOCS, write_columns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from safe_components.studies.statistics import episode_mean, last_frames
from safe_components.training import read_metrics
from safe_components.training.config import read_run
from safe_components.training.curves import Metrics

DATA = DOCS / "data" / "one_default"
FIGURE = DOCS / "figures" / "one_default.png"
NAMES = ("task", "recipe", "seed", "limit")
EVALUATED = ("eval_sampled_reward", "eval_sampled_cost", "eval_reward", "eval_cost")
COLUMNS = ("frames", "wall_seconds", "episodes", "episode_reward", "episode_cost", *EVALUATED)


@dataclass(frozen=True)
class Trained:
    """The rows of a run, and what was trained."""

    task: str
    recipe: str
    seed: int
    limit: float
    rows: Metrics

    def last_tenth(self) -> tuple[float, float]:
        """Return the mean reward and cost of the episodes in the last tenth of the frames."""
        late, episodes = last_frames(self.rows["frames"]), self.rows["episodes"]
        reward, cost = (self.rows[name][late] for name in ("episode_reward", "episode_cost"))
        return episode_mean(reward, episodes[late]), episode_mean(cost, episodes[late])

    def line(self) -> str:
        """Format the row of the table."""
        reward, cost = self.last_tenth()
        last = [self.rows[name][-1] for name in EVALUATED]
        kept = f"{cost:.1f}" if cost <= self.limit else f"**{cost:.1f}**"
        frames, minutes = self.rows["frames"][-1], self.rows["wall_seconds"][-1] / 60
        cells = [self.task, f"{self.limit:g}", self.recipe, str(self.seed), f"{frames:,.0f}"]
        cells += [f"{reward:.1f} / {kept}", "{:.1f} / {:.1f}".format(*last[:2])]
        cells += ["{:.1f} / {:.1f}".format(*last[2:]), f"{minutes:.0f}"]
        return "| " + " | ".join(cells) + " |"


def keep(directory: Path) -> None:
    """Write the rows of a finished run to ``DATA``."""
    config = read_run(directory)
    task, recipe = config["config"]["env"]["id"], config["recipe"]
    seed, limit = config["config"]["run"]["seed"], config["config"]["budget"]["cost_limit"][0]
    path = DATA / f"{task}-{recipe}-{seed}.csv"
    write_columns(
        path, NAMES, COLUMNS, [((task, recipe, seed, limit), read_metrics(directory / "metrics.csv"))]
    )


def kept() -> list[Trained]:
    """Read the runs in ``DATA``, in the order of their names."""
    runs = []
    for path in sorted(DATA.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
        first = rows[0]
        runs.append(
            Trained(first["task"], first["recipe"], int(first["seed"]), float(first["limit"]), columns)
        )
    return runs


def draw(runs: list[Trained], path: Path) -> None:
    """Draw reward and cost of each task, one column a task."""
    tasks = sorted({run.task for run in runs})
    figure = Figure(figsize=(3.2 * len(tasks), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(tasks), squeeze=False, sharex="col")
    for column, task in enumerate(tasks):
        for run in (run for run in runs if run.task == task):
            some = run.rows["episodes"] > 0
            for axis, name in zip(axes[:, column], ("reward", "cost"), strict=True):
                frames, values = run.rows["frames"][some], run.rows[f"episode_{name}"][some]
                axis.plot(frames / 1000, values, label=f"{run.recipe}, seed {run.seed}")
                axis.grid(alpha=0.3)
        cost = axes[1, column]
        cost.axhline(run.limit, color="black", linestyle="--", linewidth=1.2)
        cost.set_ylim(0, 6 * run.limit)
        cost.set_xlabel("thousand frames")
        axes[0, column].set_title(task.removeprefix("Safety"), fontsize=10)
        axes[0, column].legend(fontsize=7)
    axes[0, 0].set_ylabel("episode reward")
    axes[1, 0].set_ylabel("episode cost, limit dashed")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Copy the rows of finished runs, if there are any; draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=Path, nargs="*", default=[], help="run directories to take the rows from"
    )
    for directory in parser.parse_args().runs:
        keep(directory)
    runs = kept()
    if not runs:
        raise SystemExit(f"error: {DATA} holds no rows; name finished runs with --runs")
    FIGURE.parent.mkdir(exist_ok=True)
    draw(runs, FIGURE)
    print(
        "| task | limit | recipe | seed | frames | last tenth | last policy, sampled | last policy, mean "
        "| minutes |\n" + "|---" * 9 + "|"
    )
    print("\n".join(run.line() for run in runs))


if __name__ == "__main__":
    main()
