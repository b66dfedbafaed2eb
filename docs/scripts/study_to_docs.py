"""Copy the figure and the tables of a study into the documentation, and print the table.

    python recipes/study.py ... --run-dir runs/ablations         # the command in docs/ablations.md
    python docs/scripts/study_to_docs.py --study runs/ablations --name ablations

The columns that the figure and the tables are made of are kept in ``docs/data/NAME/rows.csv``, for all runs.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from columns import DOCS, write_columns

from safe_components.training import read_metrics

COLUMNS = (
    "frames",
    "episodes",
    "episode_reward",
    "episode_cost",
    "episode_violation_rate",
    "eval_reward",
    "eval_cost",
)


def main() -> None:
    """Copy, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True, help="directory of the study")
    parser.add_argument("--name", required=True, help="name of the files in docs")
    arguments = parser.parse_args()
    study, data = arguments.study, DOCS / "data" / arguments.name
    paths = sorted(study.glob("*/seed-*/metrics.csv"))
    runs = (((p.parts[-3], p.parts[-2].removeprefix("seed-")), read_metrics(p)) for p in paths)
    write_columns(data / "rows.csv", ("variant", "seed"), COLUMNS, runs)
    for name in ("table.csv", "seeds.csv"):
        shutil.copyfile(study / name, data / name)
    shutil.copyfile(study / "curves.png", DOCS / "figures" / f"{arguments.name}.png")
    print((study / "table.md").read_text())


if __name__ == "__main__":
    main()
