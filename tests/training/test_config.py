"""Configurations: one order of what wins, plain data and back, and one clear line for every mistake."""

import contextlib
import dataclasses
import io
import math
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from safe_components.training import (
    RecipeConfig,
    config_to_dict,
    leaves,
    load_config,
    options,
    overlay,
    parse_config,
    with_run,
    with_value,
)
from safe_components.training.command_line import given_settings
from safe_components.training.config import choices_of, fields, not_chosen, read_config, validate
from safe_components.training.recipes import load_recipe, recipe_file, recipes_folder
from safe_components.training.renamed import RENAMED

NAMES = [path.stem for path in sorted(recipes_folder().glob("[!_]*.py"))]
RECIPES = [name for name in NAMES if "launch(main, Config)" in recipe_file(name).read_text()]


def config_of(name):
    return load_recipe(recipe_file(name)).Config


cvpo = config_of("cvpo")


def refused(config_type, words, said):
    """The one line that a command line ends with."""
    with pytest.raises(SystemExit, match=said) as stop:
        parse_config(config_type, words.split() if isinstance(words, str) else words)
    message = str(stop.value)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def written(path, plain):
    path.write_text(plain if isinstance(plain, str) else yaml.safe_dump(plain))
    return str(path)


def saved_run(directory, config=None, **entries):
    """A run directory as a run leaves it, without the run."""
    config = config or cvpo()
    directory.mkdir()
    document = {
        "recipe": config.recipe,
        "layout": 2,
        "config": config_to_dict(config),
        "versions": {},
    } | entries
    written(directory / "config.yaml", document)
    return directory


# What wins


def test_flags_win_over_the_file_the_file_over_settings_and_these_over_defaults(tmp_path):
    settings = {"all": {"critics": {"gamma": 0.1, "n_step": 1, "lr": 0.1}, "env": {"id": "PointCircle"}}}
    file = {"critics": {"gamma": 0.2, "n_step": 2}}
    words = ["--settings", written(tmp_path / "s.yaml", settings)]
    words += ["--config", written(tmp_path / "c.yaml", file), "--critics.gamma", "0.3"]
    for arguments in (words, words[::-1][:2][::-1] + words[:-2]):  # wherever they stand
        config = parse_config(cvpo, arguments)
        assert (config.critics.gamma, config.critics.n_step, config.critics.lr) == (0.3, 2, 0.1)
        assert config.critics.polyak == cvpo().critics.polyak
        assert config.env.id == "PointCircle"


def test_a_flag_wins_with_the_value_of_the_default_too(tmp_path):
    where = written(tmp_path / "c.yaml", {"critics": {"gamma": 0.2}, "trust_region": "none"})
    default = cvpo()
    words = ["--config", where, "--critics.gamma", str(default.critics.gamma), "--trust-region", "hard"]
    config = parse_config(cvpo, words)
    assert config == with_run(default, config=Path(where))


def test_what_was_given_is_known_even_where_it_is_the_default():
    given = given_settings(cvpo, ["--seed", "0", "--critics.lr=0.1", "--no-progress", "--env.num_envs", "3"])
    assert {group: values for group, values in given.items() if values} == {
        "run": {"seed": 0, "progress": False},
        "critics": {"lr": 0.1},
        "env": {"num_envs": 3},
    }


def test_the_configuration_of_a_run_is_taken_without_its_directory(tmp_path):
    first = with_value(with_run(cvpo(), run_dir=tmp_path / "old", seed=4), "critics.gamma", "0.5", "")
    directory = saved_run(tmp_path / "run", first)
    config = parse_config(cvpo, ["--config", str(directory / "config.yaml"), "--run-dir", "new"])
    assert (config.critics.gamma, config.run.seed) == (0.5, 4)
    assert (config.run.run_dir, config.run.resume) == (Path("new"), None)
    said = r"config\.yaml belongs to a run of cvpo, not of sac_lag"
    refused(config_of("sac_lag"), ["--config", str(directory / "config.yaml")], said)


# Plain data and back


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_survives_yaml(name):
    config = config_of(name)()
    assert round_trip(config) == config
    for path, hint, _ in list(fields(config)):
        for choice in choices_of(hint):
            other = overlay(config, {path: choice}, "here")
            assert round_trip(other) == other
            assert leaves(other)[path] == choice
    changed = with_run(config, run_dir=Path("a b"), loggers=(), settings="x")
    assert round_trip(changed) == changed


def round_trip(config):
    plain = yaml.safe_load(yaml.safe_dump(config_to_dict(config)))
    return overlay(type(config)(), plain, "here")


@pytest.mark.parametrize("name", RECIPES)
def test_defaults_are_valid(name):
    config = config_of(name)()
    validate(config)
    assert config.recipe == name


def test_keys_may_be_joined_by_dots_and_written_with_dashes():
    nested = {"critics": {"hidden_sizes": [8], "n_step": 2}, "trust_region": {"soft": {"coef_mean": 2}}}
    joined = {"critics.hidden-sizes": 8, "critics.n-step": 2, "trust-region.soft.coef-mean": 2}
    assert overlay(cvpo(), nested, "") == overlay(cvpo(), joined, "") != cvpo()


def test_choices_keep_or_replace_their_settings():
    config = overlay(cvpo(), {"trust_region": {"kl_mean": 0.5}}, "")  # of the one that is chosen
    assert config.trust_region == options.HardConfig(kl_mean=0.5)
    assert overlay(config, {"trust_region": "hard"}, "").trust_region == options.HardConfig(kl_mean=0.5)
    assert overlay(config, {"trust_region": {"retract": None}}, "").trust_region == options.RetractConfig()
    for nothing in ("none", None, {"none": None}, {"none": {}}):
        assert leaves(overlay(config, {"trust_region": nothing}, ""))["trust_region"] == "none"
    tightened = overlay(cvpo(), {"budget.feedback.pid.kp": 0.3}, "")
    assert tightened.budget.feedback == options.PIDConfig(kp=0.3)
    assert overlay(tightened, {"budget": {"feedback": None}}, "") == cvpo()


@pytest.mark.parametrize(
    ("path", "words", "value"),
    [
        ("cost-limit", "10 20", (10.0, 20.0)),
        ("budget.cost_limit", "10", (10.0,)),
        ("cost-limit", "none", ()),
        ("--total-frames", "70", 70),
        ("run.total-frames", "70", 70),
        ("policy.lr", "1e-3", 0.001),  # a string in YAML
        ("policy.lr", "1", 1.0),
        ("loggers", "", ()),
        ("critics.layer-norm", "false", False),
        ("env.max-episode-steps", "null", None),
        ("env.cost_keys", "cost_a cost_b", ("cost_a", "cost_b")),
        ("trust-region", "none", "none"),
        ("budget.feedback", "pid", "pid"),
        ("env.id", "a:b/C-v0", "a:b/C-v0"),
    ],
)
def test_single_values_in_words(path, words, value):
    name = {"cost-limit": "budget.cost_limit", "loggers": "run.loggers"}.get(path, path)
    name = name.replace("--", "run.").replace("-", "_")
    assert leaves(with_value(cvpo(), path, words, "here"))[name] == value


# Mistakes


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"criticss": {}}, "no setting criticss; did you mean critics"),
        ({"critics": {"gama": 1}}, r"no setting critics\.gama; did you mean critics\.gamma\?"),
        ({"gamma": 1}, r"no setting gamma; did you mean critics\.gamma\?"),
        ({"estep": {"gamma": 1}}, r"no setting estep\.gamma; did you mean critics\.gamma\?"),
        ({"hidden_sizes": [8]}, r"did you mean policy\.hidden_sizes or critics\.hidden_sizes\?"),
        ({"lambda-max": 3}, r"no setting lambda_max; did you mean multiplier\.max\?"),
        ({"total_frames": 3}, r"no setting total_frames; did you mean run\.total_frames\?"),
        ({"xyzzy": 1}, "no setting xyzzy; it has env, run, .*execution"),
        ({"recipe": "cvpo"}, "no setting recipe"),
        ({"trust_region": {"coef_mean": 1}}, r"trust_region\.coef_mean; trust_region soft has it"),
        ({"trust_region": {"soft": {"kl_mean": 1}}}, r"no setting trust_region\.kl_mean"),
        (
            {"trust_region": "hrad"},
            "trust_region is 'hrad', must be one of hard, retract, soft, none; did you",
        ),
        ({"multiplier": "feedback"}, "feedback is now budget.feedback pid"),
        ({"reference": None}, "reference is 'none', must be one of polyak, copy"),
        (
            {"budget": {"feedback": {"max": 2}}},
            "budget.feedback is none, which has no settings; .* pid, grad",
        ),
        ({"trust_region": {"soft": 3}}, "trust_region must hold settings, not 3"),
        ({"critics": 3}, "critics must hold settings, not 3"),
        ({"critics": None}, "critics must hold settings, not None"),
        ({"critics": {"gamma": "high"}}, "critics.gamma is 'high', must be of type float"),
        ({"critics": {"gamma": True}}, "critics.gamma is True, must be of type float"),
        ({"critics": {"gamma": None}}, "critics.gamma is None, must be of type float"),
        ({"critics": {"gamma": 1.5}}, r"critics.gamma is 1.5, must be in \(0, 1\]"),
        ({"critics": {"gamma": math.nan}}, r"critics.gamma is nan, must be in \(0, 1\]"),
        ({"critics": {"lr": math.inf}}, "critics.lr is inf, must be positive and finite"),
        ({"critics": {"n_step": 2.0}}, "critics.n_step is 2.0, must be of type int"),
        ({"critics": {"n_step": True}}, "critics.n_step is True, must be of type int"),
        ({"critics": {"n_step": 0}}, "critics.n_step is 0, must be at least 1"),
        ({"critics": {"layer_norm": 1}}, "critics.layer_norm is 1, must be of type bool"),
        ({"critics": {"hidden_sizes": []}}, "hidden_sizes is .*, must be at least one width"),
        ({"critics": {"hidden_sizes": [8, "x"]}}, "hidden_sizes is 'x', must be of type int"),
        ({"critics": {"cost_aggregate": "min"}}, "is 'min', must be one of mean, max, conservative"),
        ({"budget": {"cost_limit": [1, -1]}}, "cost_limit is -1.0, must be finite and at least 0"),
        ({"budget": {"cost_limit": math.nan}}, "cost_limit is nan, must be finite"),
        ({"env": {"id": 3}}, "env.id is 3, must be of type str"),
        ({"env": {"max_episode_steps": 0}}, "max_episode_steps is 0, must be at least 1"),
        ({"run": {"run_dir": 3}}, "run.run_dir is 3, must be of type Path"),
        ({"run": {"loggers": ["paper"]}}, "loggers is 'paper', must be one of tensorboard"),
        ({"run": {"seed": -1}}, "seed is -1, must be at least 0"),
        ([1], "the file must hold settings"),
    ],
)
def test_plain_data_with_a_mistake(plain, said):
    with pytest.raises(ValueError, match=said) as error:
        overlay(cvpo(), plain, "here")
    assert str(error.value).startswith("here")
    assert str(error.value).count("here") == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold a mapping, but it holds None"),
        ("3", "must hold a mapping, but it holds 3"),
        ("a: {b", "is not YAML"),
        ("\tx: 1", "is not YAML"),
        ("critics: {gamma: 2}", r"c\.yaml: critics\.gamma is 2\.0, must be in"),
        ("layout: 1\nconfig: {gamma: 0.9}", r"c\.yaml has layout 1, but this version .* reads layout 2"),
        ("config: {gamma: 0.9}", r"c\.yaml has layout 1"),
    ],
)
def test_a_file_with_a_mistake(tmp_path, text, said):
    refused(cvpo, ["--config", written(tmp_path / "c.yaml", text)], said)


def test_files_that_cannot_be_read(tmp_path):
    refused(cvpo, ["--config", str(tmp_path)], "no such file")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    refused(cvpo, ["--config", str(tmp_path / "c.yaml")], "is not YAML")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--critics.gamma 2", r"critics.gamma is 2.0, must be in \(0, 1\]"),
        ("--critics.gamma nan", "critics.gamma is nan"),
        ("--seed -1", "seed is -1, must be at least 0"),
        ("--cost-limit -1", "cost_limit is -1.0, must be finite and at least 0"),
        ("--device nowhere", "device is 'nowhere', must be cpu, cuda"),
        ("--device cuda:99", "finds . CUDA devices"),
        ("--trust-region hrad", "trust-region is 'hrad', must be one of .*; did you mean hard"),
        ("--trust-region", "--trust-region needs one of hard, retract, soft, none"),
        ("--trust-region --seed 3", "--trust-region needs one of"),
        ("--trust-region.coef-mean 2", "--trust-region.coef-mean needs --trust-region soft"),
        ("--trust-region soft --trust-region.kl-mean 2", "--trust-region.kl-mean needs --trust-region hard"),
        ("--budget.feedback.kp 2", "--budget.feedback.kp needs --budget.feedback pid"),
        ("--multiplier feedback", "feedback is now budget.feedback pid"),
        ("--epsilon 0.1", "--epsilon is now --estep.epsilon"),
        ("--trust-region retract --alpha-lr=0.1", "--alpha-lr is now --trust-region.lr"),
    ],
)
def test_a_command_line_with_a_mistake(words, said):
    refused(cvpo, words, said)


def test_a_single_number_without_a_range_must_be_finite():
    with pytest.raises(ValueError, match=r"entropy\.target is nan, must be finite"):
        overlay(config_of("sac_lag")(), {"entropy": {"target": math.nan}}, "here")
    refused(config_of("sac_lag"), "--entropy.target inf", "entropy.target is inf, must be finite")


# Names of version 0.1


def test_every_new_name_is_one_of_some_recipe():
    known = set()
    for config in (config_of(name)() for name in RECIPES):
        known |= {path for path, _, _ in fields(config)} | set(not_chosen(config))
    known = {path.replace("_", "-") for path in known}
    lost = {old: new for old, new in RENAMED.items() if not {option.split()[0] for option in new} <= known}
    assert lost == {}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_flag_names_the_new_one(old):
    tried = 0
    for name in RECIPES:
        config = config_of(name)
        here = {path.replace("_", "-") for path in (*leaves(config()), *not_chosen(config()))}
        new = [option for option in RENAMED[old] if option.split()[0] in here]
        if new:
            said = refused(config, [f"--{old}", "1"], f"--{old} is now ")
            assert said.partition(" is now ")[2] == " or ".join(f"--{option}" for option in new)
            tried += 1
    assert tried


# Choices by flag


@pytest.mark.parametrize(
    ("words", "trust_region"),
    [
        ("", options.HardConfig()),
        ("--trust-region hard", options.HardConfig()),
        ("--trust-region none", options.NoneConfig()),
        ("--trust-region None", options.NoneConfig()),
        ("--trust-region=none", options.NoneConfig()),
        ("--trust_region none", options.NoneConfig()),
        ("--trust-region soft --trust-region.coef-mean 2", options.SoftConfig(coef_mean=2.0)),
        ("--trust-region.coef-mean 2 --trust-region soft", options.SoftConfig(coef_mean=2.0)),
        ("--trust-region none --trust-region=retract", options.RetractConfig()),  # the last one wins
        ("--trust-region.kl-mean 0.3", options.HardConfig(kl_mean=0.3)),
    ],
)
def test_choices_by_flag(words, trust_region):
    assert parse_config(cvpo, words.split()).trust_region == trust_region


def test_flags_keep_what_a_file_says_of_a_choice(tmp_path):
    where = written(tmp_path / "c.yaml", {"trust_region": {"soft": {"coef_mean": 2, "coef_cov": 3}}})
    for words in ([], ["--trust-region", "soft"]):
        config = parse_config(cvpo, ["--config", where, *words, "--trust-region.coef-cov", "4"])
        assert config.trust_region == options.SoftConfig(coef_mean=2.0, coef_cov=4.0)


def test_help_shows_groups_and_choices(capsys):
    with contextlib.suppress(SystemExit):
        parse_config(cvpo, ["--help"])
    page = capsys.readouterr().out
    for group in ("env", "run", "budget", "critics", "estep", "trust-region"):
        assert f"{group} options" in page.replace("_", "-")
    assert "--trust-region {hard,retract,soft,none}  (now hard)" in page
    assert "--budget.feedback {pid,gradient,none}  (now none)" in page
    for flag in ("--env.id", "--seed", "--total-frames", "--cost-limit", "--device", "--run-dir", "--resume"):
        assert f"{flag} " in page
    assert "--trust-region.coef-mean" not in page
    with contextlib.suppress(SystemExit):
        parse_config(cvpo, ["--trust-region", "soft", "--help"])
    assert "--trust-region.coef-mean" in capsys.readouterr().out


def test_an_unknown_flag_shows_the_nearest():
    output = io.StringIO()
    with contextlib.redirect_stderr(output), pytest.raises(SystemExit):
        parse_config(cvpo, ["--critics.gama", "0.9"])
    assert "--critics.gamma" in output.getvalue()


# Going on


def test_a_resumed_run_keeps_its_configuration_but_for_how_long_and_where(tmp_path):
    first = with_value(with_value(cvpo(), "trust-region", "soft", ""), "critics.gamma", "0.5", "")
    directory = saved_run(tmp_path / "run", first)
    resume = ["--resume", str(directory)]
    assert parse_config(cvpo, resume) == with_run(first, run_dir=directory, resume=directory)
    more = parse_config(
        cvpo, [*resume, "--total-frames", "7", "--loggers", "--no-progress", "--threads", "2"]
    )
    assert (more.run.total_frames, more.run.loggers, more.run.threads) == (7, (), 2)
    assert more.critics.gamma == 0.5
    same = parse_config(cvpo, [*resume, "--critics.gamma", "0.5", "--trust-region", "soft"])
    assert same.critics.gamma == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--critics.gamma 0.9", "critics.gamma: saved 0.99, now 0.9"),
        ("--trust-region none", "trust_region: saved hard, now none"),
        ("--seed 3", "seed: saved 0, now 3"),
        ("--cost-limit 3", "cost_limit: saved .*25.0.*, now .*3.0"),
        ("--env.id PointCircle --env.num-envs 3", "env.id: .*; env.num_envs: saved 10, now 3"),
        ("--settings PointCircle", "settings: saved None, now PointCircle"),
    ],
)
def test_a_resumed_run_refuses_another_experiment(tmp_path, words, said):
    directory = saved_run(tmp_path / "run")
    refused(cvpo, ["--resume", str(directory), *words.split()], f"started with another .*{said}")


def test_a_resumed_run_checks_a_configuration_file_as_it_does_flags(tmp_path):
    resume = ["--resume", str(saved_run(tmp_path / "run")), "--config"]
    more = parse_config(cvpo, [*resume, written(tmp_path / "a.yaml", {"run": {"total_frames": 7}})])
    assert more.run.total_frames == 7
    where = written(tmp_path / "b.yaml", {"run": {"total_frames": 7}, "critics": {"gamma": 0.9}})
    refused(cvpo, [*resume, where], "started with another .*critics.gamma: saved 0.99, now 0.9")


def test_runs_that_cannot_be_resumed(tmp_path):
    refused(cvpo, ["--resume", str(tmp_path)], "is not a run directory: it holds no config.yaml")
    old = saved_run(tmp_path / "old", layout=1)
    refused(
        cvpo, ["--resume", str(old)], r"old/config\.yaml has layout 1, but this version .* reads layout 2"
    )
    (tmp_path / "older").mkdir()
    written(tmp_path / "older" / "config.yaml", {"recipe": "cvpo", "config": {"gamma": 0.9}})
    refused(cvpo, ["--resume", str(tmp_path / "older")], "has layout 1")
    for number, share in enumerate((0.0, 0.3, 0.6, 0.9)):
        cut = saved_run(tmp_path / f"cut{number}") / "config.yaml"
        cut.write_text(cut.read_text()[: int(share * cut.stat().st_size)])
        refused(
            cvpo, ["--resume", str(cut.parent)], r"config\.yaml (is cut|is not YAML|must hold a mapping|has)"
        )
    half = saved_run(tmp_path / "half") / "config.yaml"
    half.write_text(half.read_text().partition("versions:")[0])
    refused(cvpo, ["--resume", str(half.parent)], "config.yaml is cut: it does not end with the versions")
    run = saved_run(tmp_path / "run")
    refused(config_of("sac_lag"), ["--resume", str(run)], "belongs to a run of cvpo, not of sac_lag")
    with pytest.raises(ValueError, match="belongs to a run of cvpo, not of td3_lag"):
        load_config(config_of("td3_lag"), run)


# A recipe of one's own


@dataclasses.dataclass(frozen=True)
class Group:
    """A group that checks itself."""

    low: float = 0.0
    """smaller"""
    high: float = 1.0
    """larger"""

    def validate(self, config):
        """Refuse an empty range."""
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, must be below high {self.high}")


@dataclasses.dataclass(frozen=True)
class OwnConfig(RecipeConfig):
    """A recipe."""

    recipe: ClassVar[str] = "own"
    group: Group = Group()


def test_a_group_may_check_itself():
    assert parse_config(OwnConfig, ["--group.low", "-2"]).group.low == -2
    refused(OwnConfig, "--group.low 2", "low is 2.0, must be below high 1.0")


def test_recipes_are_found_by_name_and_by_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no recipe '\.\./cvpo' in "):
        recipe_file("../cvpo")
    with pytest.raises(FileNotFoundError, match=r"nothing\.py: no such file"):
        load_recipe(tmp_path / "nothing.py")
    (tmp_path / "plain.py").write_text("x = 1")
    with pytest.raises(ValueError, match=r"plain\.py is not a recipe: it holds no Config"):
        load_recipe(tmp_path / "plain.py")
    (tmp_path / "beside_it.py").write_text("WIDTH = 7")
    text = (
        "import dataclasses\nfrom beside_it import WIDTH\nfrom safe_components.training import RecipeConfig\n"
    )
    text += "@dataclasses.dataclass(frozen=True)\nclass Config(RecipeConfig):\n    width: int = WIDTH\n"
    (tmp_path / "mine.py").write_text(text)
    mine = load_recipe(tmp_path / "mine.py")
    assert leaves(mine.Config())["width"] == 7
    assert load_recipe(tmp_path / "mine.py") is mine


def test_a_file_of_settings_is_read_over_any_configuration(tmp_path):
    file = tmp_path / "part.yaml"
    file.write_text("{group.low: 0.5, run: {seed: 3}}")
    config = read_config(OwnConfig(), file)
    assert (config.group.low, config.run.seed) == (0.5, 3)


def test_a_recipe_that_fails_while_it_is_imported_can_be_mended_and_imported_again(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_recipe(path)
    assert not any(str(path) in name for name in sys.modules)
    path.write_text("from safe_components.training import RecipeConfig as Config\n")
    assert load_recipe(path).Config is RecipeConfig
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"mine\.txt is not a Python file"):
        load_recipe(tmp_path / "mine.txt")


def test_a_word_that_is_no_yaml_is_taken_as_it_is():
    assert with_value(RecipeConfig(), "env.id", "[1", "here").env.id == "[1"


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_a_number_of_ones_own_recipe_must_be_finite(number):
    @dataclasses.dataclass(frozen=True)
    class Mine(RecipeConfig):
        slope: float = 1.0

    with pytest.raises(ValueError, match=f"slope is {number}, must be finite"):
        with_value(Mine(), "slope", f".{number}".replace(".-", "-."), "here")
