"""Settings of a task: files in recipes/settings, each read by the recipes it is for."""

import dataclasses
from pathlib import Path

import pytest
import yaml

import cvpo
import sac_lag
import study
from plumbing.members import plan
from safe_components.training import parse_config

FOLDER = Path(cvpo.__file__).parent / "settings"
FILES = sorted(FOLDER.glob("*.yaml"))


def written(path, text):
    path.write_text(text)
    return str(path)


def test_recipe_wins_over_all_and_flags_over_both(tmp_path):
    text = "all: {env.id: PointCircle, gamma: 0.9, total-frames: 700, hidden-sizes: [8, 9]}\n"
    text += "cvpo: {gamma: 0.8, layer-norm: false, seed: 3}\nsac_lag: {alpha-lr: 5}\n"
    where = written(tmp_path / "a.yaml", text)
    config = parse_config(cvpo.Config, ["--settings", where, "--seed", "4"])
    assert (config.env.id, config.gamma, config.layer_norm, config.seed) == ("PointCircle", 0.8, False, 4)
    assert (config.total_frames, config.hidden_sizes) == (700, (8, 9))
    rest = dataclasses.replace(
        config, **{name: getattr(cvpo.Config(), name) for name in ("env", "gamma", "layer_norm", "seed")}
    )
    unchanged = dataclasses.replace(rest, total_frames=100_000, hidden_sizes=(128, 128), settings=None)
    assert unchanged == cvpo.Config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("all: {gama: 0.9}", "gama"),
        ("all: {gamma: high}", "gamma high"),
        ("all: {gamma: 2e}", "gamma"),
        ("cvop: {gamma: 0.9}", r"no recipe cvop\.py"),
        ("gamma: 0.9", "must hold sections"),
        ("- 1", "must hold sections"),
    ],
)
def test_bad_files_end_in_one_line(tmp_path, text, said):
    with pytest.raises(SystemExit, match=said):
        parse_config(cvpo.Config, ["--settings", written(tmp_path / "a.yaml", text)])


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(SystemExit, match=f"'Nowhere'.*holds.*{FILES[0].stem}"):
        parse_config(cvpo.Config, ["--settings=Nowhere"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", [cvpo, sac_lag, study])
def test_every_file_is_read_by_every_recipe_of_the_results(path, recipe):
    config = parse_config(recipe.Config, ["--settings", path.stem])
    assert config.env.id == path.stem
    assert config.cost_limit != ()
    for section in yaml.safe_load(path.read_text()).values():
        assert all("_" not in option for option in section)  # as on the command line


def test_a_study_says_the_frames_of_a_file_to_its_members(tmp_path):
    """Else a run continued after the file was changed would keep the frames it was started with."""
    where = written(tmp_path / "a.yaml", "all: {env.id: PointCircle, total-frames: 700}")
    members = plan(["cvpo"], [0], {"settings": [where]}, {}, tmp_path / "study")
    flags = list(members[0].flags)
    assert flags[flags.index("--total-frames") + 1] == "700"
    members = plan(["cvpo"], [0], {"settings": [where], "total-frames": ["900"]}, {}, tmp_path / "study")
    assert [flag for flag in members[0].flags if flag in ("--total-frames", "900")] == [
        "--total-frames",
        "900",
    ]
