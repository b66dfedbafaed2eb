"""Draw the figure and print the tables of ``docs/baselines.md``, from the rows in ``docs/data``.

    python docs/scripts/baselines.py --run ppo-lag 0 runs/study/ppo-lag/seed-0 --run saute 0 runs/saute
    python docs/scripts/baselines.py --limit one-policy 10 runs/any --limit trained-at-10 10 runs/ten

The ``metrics.csv`` of the runs, and the ``evaluation.csv`` of the limits, are copied to ``docs/data`` first.
CVPO's rows are those of ``docs/ablations.md``. Without ``--run`` and ``--limit``, the figure and the tables
are made from the rows that are there.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from columns import DOCS, write_columns

from safe_components.studies.figure import plot_comparison
from safe_components.studies.statistics import episode_mean, last_frames
from safe_components.training import read_metrics

LIMIT = 25.0
COLUMNS = ("frames", "episodes", "episode_reward", "episode_cost", "episode_violation_rate")
EVALUATED = ("reward", "cost", "over_limit")
Runs = dict[str, dict[str, dict[str, np.ndarray]]]


def read_rows(path: Path) -> Runs:
    """Return the columns of each seed of each variant, from a file of ``write_columns``."""
    rows: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["variant"]][row["seed"]].append([float(row[column]) for column in COLUMNS])
    return {
        variant: {seed: dict(zip(COLUMNS, np.array(table).T, strict=True)) for seed, table in seeds.items()}
        for variant, seeds in rows.items()
    }


def late(run: dict[str, np.ndarray]) -> str:
    """Format reward and cost of the last tenth of the frames, and the share of episodes over the limit."""
    last, episodes = last_frames(run["frames"]), run["episodes"]
    reward, cost = (episode_mean(run[f"episode_{name}"][last], episodes[last]) for name in ("reward", "cost"))
    over = episode_mean(run["episode_violation_rate"], episodes)
    return f"{reward:.0f} / {cost:.0f} ({100 * over:.0f} %)"


def evaluations(path: Path) -> Iterator[str]:
    """Yield a line of the table of limits for each policy, limit and kind of action."""
    groups: dict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = row["policy"], row["limit"], row["action"]
            groups[key].append([float(row[column]) for column in EVALUATED])
    for (policy, limit, action), rows in groups.items():
        reward, cost, over = np.mean(rows, 0)
        yield f"| {policy} | {limit} | {action} | {reward:.0f} | {cost:.1f} | {100 * over:.0f} % |"


def main() -> None:
    """Copy the rows of finished runs, if there are any; draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", nargs=3, action="append", default=[], metavar=("VARIANT", "SEED", "DIRECTORY")
    )
    parser.add_argument("--limit", nargs=3, action="append", default=[], metavar=("POLICY", "LIMIT", "FILE"))
    arguments = parser.parse_args()
    rows, limits = (DOCS / "data" / "baselines" / name for name in ("rows.csv", "limits.csv"))
    if arguments.run:
        runs = (
            ((name, seed), read_metrics(Path(path) / "metrics.csv")) for name, seed, path in arguments.run
        )
        write_columns(rows, ("variant", "seed"), COLUMNS, runs)
    if arguments.limit:
        limits.parent.mkdir(parents=True, exist_ok=True)
        with limits.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["policy", "limit", "action", *EVALUATED])
            for policy, limit, path in arguments.limit:
                with Path(path).open(encoding="utf-8") as source:
                    for row in csv.DictReader(source):
                        out.writerow([policy, limit, row["action"], *(row[name] for name in EVALUATED)])
    variants = {"cvpo": read_rows(DOCS / "data" / "ablations" / "rows.csv")["cvpo"], **read_rows(rows)}
    plot_comparison(
        {name: list(seeds.values()) for name, seeds in variants.items()},
        [LIMIT],
        DOCS / "figures" / "baselines.png",
        title="PointCircle, limit 25",
    )
    for name, seeds in variants.items():
        print(f"| {name} | {', '.join(late(run) for run in seeds.values())} |")
    print("\n".join(evaluations(limits)))


if __name__ == "__main__":
    main()
