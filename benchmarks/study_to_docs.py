"""Data and figure of a study whose results the documentation shows.

    python recipes/study.py ... --run-dir runs/ablations         # the command in docs/ablations.md
    python benchmarks/study_to_docs.py --study runs/ablations --name ablations

copies the figure and the tables to ``docs``, joins the rows of all runs in one file (the columns that the
figure and the tables are made of), and prints the table.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

from safe_components.training import read_metrics

DOCS = Path(__file__).parents[1] / "docs"
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True, help="directory of the study")
    parser.add_argument("--name", required=True, help="of the files in docs")
    arguments = parser.parse_args()
    study, data = arguments.study, DOCS / "data" / arguments.name
    data.mkdir(parents=True, exist_ok=True)
    for name in ("table.csv", "seeds.csv"):
        shutil.copyfile(study / name, data / name)
    shutil.copyfile(study / "curves.png", DOCS / "figures" / f"{arguments.name}.png")
    with (data / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["variant", "seed", *COLUMNS])
        for path in sorted(study.glob("*/seed-*/metrics.csv")):
            run = read_metrics(path)
            prefix = [path.parts[-3], path.parts[-2].removeprefix("seed-")]
            for row in zip(*(run[column] for column in COLUMNS), strict=True):
                out.writerow([*prefix, *(f"{number:.5g}" for number in row)])
    print((study / "table.md").read_text())


if __name__ == "__main__":
    main()
