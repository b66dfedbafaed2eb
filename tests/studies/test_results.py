"""Tables of a study against rows made by hand."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from safe_components.studies import Member, columns_of, measure, record_study, write_results
from safe_components.studies.results import read_rows
from safe_components.training import EnvConfig, RecipeConfig, RunConfig, with_run
from safe_components.training.options import BudgetConfig

ROOT = Path(__file__).parents[2]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(directory, frames, **columns):
    directory.mkdir(parents=True)
    table = {"frames": frames, "wall_seconds": np.asarray(frames) / 10, **columns}
    lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    (directory / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_study(directory, labels, limits, total):
    """A study of hand-made rows: by label, for each seed its rewards, costs and whether it ended well."""
    members = []
    for label, seeds in labels.items():
        run, budget = RunConfig(total_frames=total), BudgetConfig(cost_limit=limits)
        config = RecipeConfig(env=EnvConfig(id="PointCircle"), run=run, budget=budget)
        for seed, (reward, *costs, over) in enumerate(seeds):
            place = directory / label / f"seed-{seed}"
            members.append(Member(label, Path("stub.py"), with_run(config, seed=seed), place))
            names = ["episode_cost", "episode_cost_1"][: len(costs)]
            over_limit = [np.asarray(c) > d for c, d in zip(costs, limits, strict=True)]
            violated = np.any([np.zeros(len(reward), bool), *over_limit], 0) * 1.0
            frames = np.arange(1, len(reward) + 1) * 100
            made = {
                "episodes": [2] * len(reward),
                "episode_reward": reward,
                "episode_violation_rate": violated,
            }
            metrics(place, frames, **made, **dict(zip(names, costs, strict=True)))
            if over:
                (place / "finished").write_text(str(total))
    directory.mkdir(exist_ok=True)
    scratch = directory.parent / "record"
    scratch.mkdir()
    record_study(scratch, members, "python recipes/study.py ...")
    (scratch / "study.yaml").rename(directory / "study.yaml")


def test_a_study_without_a_cost_has_a_table_and_a_figure(tmp_path):
    write_study(tmp_path / "study", {"mpo": [([1.0, 2.0, 3.0], True), ([2.0, 3.0, 4.0], True)]}, (), 300)
    text = write_results(tmp_path / "study").read_text()
    assert "PointCircle, no cost." in text
    assert "cost" not in text.splitlines()[0]
    (row,) = rows(tmp_path / "study" / "table.csv")
    assert float(row["reward"]) == pytest.approx(3.5)  # the last rows, 3 and 4
    assert "frames_to_safe" not in row


def test_the_table_says_what_is_missing(tmp_path):
    safe, unsafe = [0.0] * 10, [90.0] * 10
    rising = [float(10 * i) for i in range(1, 11)]
    labels = {
        "good": [([r + s for r in rising], safe, True) for s in (0.0, 3.0, 6.0)],
        "mixed": [(rising, safe, True), (rising, unsafe, True), (rising[:4], safe[:4], False)],
        "bad": [(rising, unsafe, True)],
    }
    write_study(tmp_path / "study", labels, (25.0,), 1000)
    lines = write_results(tmp_path / "study").read_text().splitlines()
    cells = {line.split(" | ")[0][2:]: line.strip("| ").split(" | ") for line in lines[2:5]}
    head = lines[0].strip("| ").split(" | ")
    column = {name: {label: row[head.index(name)] for label, row in cells.items()} for name in head}
    assert column["seeds"] == {"good": "3", "mixed": "2 of 3", "bad": "1"}
    assert column["reward"]["good"] == "103 [100, 106]"
    assert column["reward"]["bad"] == "100"
    assert column["cost"]["mixed"] == "45 [0, 90]"
    assert column["evaluated reward"] == {"good": "–", "mixed": "–", "bad": "–"}
    assert column["episodes over a limit"]["mixed"] == "50.0% [0.0%, 100.0%]"
    assert column["frames to safe"] == {
        "good": "100 [100, 100]",
        "mixed": "100 (1 of 2 seeds)",
        "bad": "never",
    }
    # Windows of three: the best is 90; 81 is reached by 80, 90, 100 only. +3 and +6 change nothing.
    assert column["frames to 90 % of best"]["good"] == "800 [800, 800]"
    by_seed = rows(tmp_path / "study" / "seeds.csv")
    assert [row["finished"] for row in by_seed] == ["True"] * 5 + ["False", "True"]
    assert by_seed[5]["frames"] == "400"
    assert by_seed[5]["reward"] == ""


def test_two_costs_have_columns_and_limits_of_their_own(tmp_path):
    seed = ([1.0] * 4, [0.0] * 4, [9.0, 9.0, 9.0, 0.0], True)
    write_study(tmp_path / "study", {"two": [seed]}, (25.0, 5.0), 400)
    write_results(tmp_path / "study")
    (row,) = rows(tmp_path / "study" / "table.csv")
    assert (row["cost"], row["cost_1"], row["violation_rate"]) == ("0", "0", "0.75")
    assert row["frames_to_safe"] == ""  # (9 + 9 + 0) / 3 is over 5
    assert {column.name for column in columns_of(["", "_1"])} <= set(row)


def test_measures_of_one_run(tmp_path):
    run = read_rows(tmp_path / "none")
    assert run["frames"].tolist() == []
    nan = math.nan
    run = {
        "frames": np.array([100.0, 200, 300, 1000]),
        "wall_seconds": np.array([1.0, 2, 3, 4]),
        "episodes": np.array([1.0, 0, 3, 4]),
        "episode_reward": np.array([5.0, nan, 6, 7]),
        "episode_cost": np.array([99.0, nan, 1, 2]),
        "episode_violation_rate": np.array([1.0, nan, 0, 0.25]),
        "eval_reward": np.array([1.0, nan, 2, nan]),
        "eval_cost": np.array([3.0, nan, 4, nan]),
    }
    assert measure(run, [25.0]) == {
        "reward": 7.0, "cost": 2.0, "eval_reward": 2.0, "eval_cost": 4.0, "violation_rate": 0.25,
        "frames_to_safe": 200.0, "frames_to_best": 200.0, "wall_seconds": 4.0,
    }  # fmt: skip


def test_the_docs_define_every_column():
    page = (ROOT / "docs" / "studies.md").read_text()
    assert [c.heading for c in columns_of() if f"| {c.heading} |" not in page] == []
    assert [c.name for c in columns_of() if f"`{c.name}`" not in page] == []


def test_a_study_of_an_older_layout_is_refused_by_name(tmp_path):
    write_study(tmp_path / "study", {"one": [([1.0], [0.0], True)]}, (25.0,), 100)
    path = tmp_path / "study" / "study.yaml"
    document = yaml.safe_load(path.read_text())
    del document["layout"]
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ValueError, match=r"study\.yaml has layout 1, but this version .* reads layout 2"):
        write_results(tmp_path / "study")
