"""The scripts that draw the documentation's figures."""

import csv
import re
import sys

import baselines
import columns
import default_run
import defaults
import explanations
import films
import long_sentences
import numpy as np
import one_default
import pytest
import study_to_docs
import torch
import weak_spots
import yaml

from safe_components.training.config import LAYOUT

HEAD = "frames,episodes,episode_reward,episode_cost,episode_violation_rate,eval_reward,eval_cost,entropy\n"
ROWS = "100,2,1.23456789,30,0.5,,,1.5\n300,4,2.5,20,0.25,3,10,1.25\n"


def run_directory(directory):
    directory.mkdir(parents=True)
    (directory / "metrics.csv").write_text(HEAD + ROWS)
    return directory


def call(script, monkeypatch, docs, *flags):
    """Run a script that works on ``docs``."""
    monkeypatch.setattr(script, "DOCS", docs)
    monkeypatch.setattr(sys, "argv", ["script", *map(str, flags)])
    script.main()


def test_rows_are_named_and_rounded(tmp_path):
    runs = [(("a", "1"), {"x": np.array([1.23456789, np.nan])}), (("b", "2"), {"x": np.array([1e6])})]
    columns.write_columns(tmp_path / "new" / "rows.csv", ("variant", "seed"), ("x",), runs)
    text = (tmp_path / "new" / "rows.csv").read_text()
    assert text.split() == ["variant,seed,x", "a,1,1.2346", "a,1,nan", "b,2,1e+06"]


def test_a_study_is_copied_with_the_rows_of_all_runs(tmp_path, monkeypatch, capsys):
    study, docs = tmp_path / "study", tmp_path / "docs"
    for variant, seed in (("cvpo", 0), ("cvpo", 1), ("mpo", 0)):
        run_directory(study / variant / f"seed-{seed}")
    for name in ("table.csv", "seeds.csv", "curves.png", "table.md"):
        (study / name).write_text(name)
    (docs / "figures").mkdir(parents=True)
    call(study_to_docs, monkeypatch, docs, "--study", study, "--name", "new")
    rows = list(csv.DictReader((docs / "data" / "new" / "rows.csv").read_text().splitlines()))
    assert [(row["variant"], row["seed"]) for row in rows[::2]] == [
        ("cvpo", "0"),
        ("cvpo", "1"),
        ("mpo", "0"),
    ]
    assert rows[0]["episode_reward"] == "1.2346"
    assert (docs / "data" / "new" / "seeds.csv").read_text() == "seeds.csv"
    assert (docs / "figures" / "new.png").read_text() == "curves.png"
    assert capsys.readouterr().out == "table.md\n"


def test_a_weak_spot_is_drawn_again_from_its_rows(tmp_path, monkeypatch):
    (tmp_path / "figures").mkdir()
    flags = ["--figure", "new", "--panels", "episode_length", "episode_cost+eval_cost"]
    run = ["--run", "one", run_directory(tmp_path / "run")]
    call(weak_spots, monkeypatch, tmp_path, *flags, *run)
    kept = (tmp_path / "data" / "weak_spots" / "new.csv").read_text().split()
    assert kept == [
        "run,frames,episode_length,episode_cost,eval_cost",
        "one,100,50,30,nan",
        "one,300,50,20,10",
    ]
    figure = tmp_path / "figures" / "new.png"
    first = figure.read_bytes()
    figure.unlink()
    call(weak_spots, monkeypatch, tmp_path, *flags)
    assert figure.read_bytes() == first


def test_a_row_of_the_default_run_holds_means_over_its_last_frames(tmp_path, monkeypatch):
    path = run_directory(tmp_path / "seed-7") / "metrics.csv"
    path.write_text(
        HEAD.replace("entropy", "wall_seconds") + ROWS.replace("1.5", "60").replace("1.25", "120")
    )
    monkeypatch.setattr(default_run, "LAST", 250)
    cells = [cell.strip() for cell in default_run.row(path).strip("|").split("|")]
    reward, cost = (2 * 1.23456789 + 4 * 2.5) / 6, (2 * 30 + 4 * 20) / 6  # two episodes, and four
    assert cells == [
        "metrics", "1.2 / 30", f"{reward:.1f} / {cost:.1f}", "3.0 / 10.0", "33 %", "2.0 min",
    ]  # fmt: skip


def test_a_default_run_without_rows_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(default_run, "DATA", tmp_path)
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit, match="name finished runs with --runs"):
        default_run.main()


def test_a_run_with_the_defaults_is_kept_drawn_and_held_against_its_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(one_default, "DATA", tmp_path / "data")
    monkeypatch.setattr(one_default, "FIGURE", tmp_path / "figures" / "one.png")
    run = tmp_path / "run"
    run.mkdir()
    settings = {"env": {"id": "SafetyCarRun-v0"}, "run": {"seed": 20}, "budget": {"cost_limit": [10.0]}}
    written = {"recipe": "cvpo", "layout": LAYOUT, "config": settings, "versions": {}}
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    rows = ["300,60,2,100,9,,,,", "930,90,1,500,8,,,,", "1000,120,3,540,12,530,9,550,1"]
    (run / "metrics.csv").write_text("\n".join([",".join(one_default.COLUMNS), *rows]) + "\n")
    for flags in (["--runs", str(run)], []):  # the second time from the rows that are kept
        monkeypatch.setattr(sys, "argv", ["script", *flags])
        one_default.main()
        # Episodes weigh alike: (500 + 3 * 540) / 4 and (8 + 3 * 12) / 4.
        last = (
            "| SafetyCarRun-v0 | 10 | cvpo | 20 | 1,000 | 530.0 / **11.0** | 530.0 / 9.0 | 550.0 / 1.0 | 2 |"
        )
        assert capsys.readouterr().out.splitlines()[-1] == last
    assert (tmp_path / "figures" / "one.png").stat().st_size > 10_000


def test_baselines_are_drawn_beside_cvpo_and_limits_are_averaged(tmp_path, monkeypatch, capsys):
    (tmp_path / "figures").mkdir()
    (tmp_path / "data" / "ablations").mkdir(parents=True)
    cvpo = "variant,seed,frames,episodes,episode_reward,episode_cost,episode_violation_rate\n"
    (tmp_path / "data" / "ablations" / "rows.csv").write_text(cvpo + "cvpo,0,100,2,150,20,0.5\n")
    evaluation = tmp_path / "evaluation.csv"
    evaluation.write_text("action,reward,cost,over_limit\nmean,10,4,0\nmean,20,12,1\n")
    flags = ["--run", "crpo", 1, run_directory(tmp_path / "run"), "--limit", "any", 10, evaluation]
    for again in (flags, []):  # from the rows that are kept
        call(baselines, monkeypatch, tmp_path, *again)
        assert capsys.readouterr().out.splitlines() == [
            "| cvpo | 150 / 20 (50 %) |",
            "| crpo | 2 / 20 (33 %) |",
            "| any | 10 | mean | 15 | 8.0 | 50 % |",
        ]
    assert (tmp_path / "figures" / "baselines.png").stat().st_size > 1000


EXPLANATION = ("data_flow", "estep", "mstep", "cost_budget", "lagrangian")


@pytest.mark.parametrize("name", EXPLANATION)
def test_the_page_of_an_explanation_opens_with_its_picture_and_its_formula(name):
    opening = (long_sentences.DOCS / f"{name}.md").read_text().split("\n## ")[0]
    assert 0 < opening.index(f"](figures/{name}.png)") < opening.index("\n$$\n")


def test_the_pictures_of_the_explanation_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(explanations, "STEPS", 3)
    explanations.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir() if path.stat().st_size > 5000}
    assert drawn == {f"{name}.png" for name in EXPLANATION}
    assert all((long_sentences.DOCS / "figures" / name).exists() for name in drawn)


def test_the_estep_of_the_picture_keeps_its_limit():
    weight = explanations.weights(torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [1.0]]), 1.0, [0.25])
    assert torch.allclose(weight, torch.tensor([0.75, 0.25]), atol=1e-4)


def test_the_front_page_shows_the_films_with_their_numbers():
    rows = list(csv.DictReader((long_sentences.DOCS / "data" / "films.csv").read_text().splitlines()))
    assert films.table(rows) in (long_sentences.DOCS.parent / "README.md").read_text()
    folder = long_sentences.DOCS / "figures" / "films"
    assert {f"{row['name']}.webp" for row in rows} == {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


def test_the_page_of_the_options_holds_the_defaults_of_the_source():
    assert defaults.PAGE.read_text().endswith(defaults.tables()), "run docs/scripts/defaults.py"


def test_every_option_has_a_meaning_and_differing_defaults_differ():
    for name in defaults.RECIPES:
        rows = list(defaults.options(defaults.load_recipe(defaults.recipe_file(name)).Config()))
        assert [flag for flag, _, _, meaning in rows if not meaning] == []
    rows = defaults.differing()
    assert (
        "`--policy.covariance` (gaussian)",
        "cvpo",
        "diagonal",
        "`gaussian_policy(covariance)`",
        "full",
    ) in rows
    assert all(row[2] != row[4] for row in rows)


def test_long_sentences_are_found_in_prose_alone(tmp_path):
    page, short, long = tmp_path / "page.md", "Word" + 29 * " word" + ".", "Word" + 30 * " word" + "."
    text = f"# {long}\n\n{short} {short}\n{long}\n\n| {long} |\n\n    {long}\n\n"
    page.write_text(text + f"```\n{long}\n```\n\n- **{short}** {long}\n")
    assert long_sentences.long_sentences(page) == [long, long]


GUIDE = long_sentences.guide()
RESULTS = long_sentences.DOCS / "results"


def name_of(page):
    return str(page.relative_to(long_sentences.DOCS))


@pytest.mark.parametrize("page", GUIDE, ids=name_of)
def test_no_sentence_of_the_guide_has_more_than_30_words(page):
    assert not long_sentences.long_sentences(page)


def test_digits_are_counted_in_prose_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# 1\n\n| 22 |\n\n    333\n\nOne in 4 of `55` is at [6](seven7.md).\n\n- 8 `9`\n")
    assert long_sentences.digits(page) == 3


def test_the_numbers_of_the_results_stand_in_tables():
    pages = [page for page in GUIDE if page.parent.name in ("results", "notebook")]
    assert len(pages) > 10
    assert sum(map(long_sentences.digits, pages)) <= 259  # a tenth of when they were one page of prose


def test_the_numbers_of_the_guide_stand_in_tables():
    names = ["performance", "environments", "own_task", "ablations", "baselines", "where_time_goes"]
    names += ["diagnosis", "estep", "mstep", "cost_budget", "lagrangian"]
    pages = [long_sentences.DOCS / f"{name}.md" for name in names]
    assert sum(map(long_sentences.digits, pages)) <= 108  # a tenth of when they stood in sentences


@pytest.mark.parametrize("page", sorted(set(RESULTS.glob("*.md")) - {RESULTS / "index.md"}), ids=name_of)
def test_the_page_of_a_task_has_one_table_one_figure_and_at_most_five_sentences(page):
    text = page.read_text()
    assert len(re.findall(r"^\|[-|]+\|$", text, re.M)) == len(re.findall(r"^!\[", text, re.M)) == 1
    assert len(long_sentences.sentences(text)) <= 5


def test_the_page_of_the_guide_says_at_once_what_one_can_do_after_it():
    guide = [page for page in GUIDE if page.parent.name != "api" and page.name != "index.md"]
    silent = []
    for page in guide:
        text = page.read_text().split("\n", 1)[1]
        first = " ".join(" ".join(long_sentences.sentences(text)).split()[:100])
        if not re.search(r"(After|With|reading) this page,? .*\byou\b", first):
            silent.append(name_of(page))
    assert not silent
