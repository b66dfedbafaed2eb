"""Settings of a task: files in recipes/settings, each read by the recipes it is for."""

import dataclasses

import pytest
import yaml

import cvpo
import sac_lag
from safe_components.training import config_to_dict, leaves, parse_config
from safe_components.training.recipes import load_recipe, recipe_file, recipes_folder

FOLDER = recipes_folder() / "settings"
FILES = sorted(FOLDER.rglob("*.yaml"))
NAMES = [str(path.relative_to(FOLDER).with_suffix("")) for path in FILES]
SECTIONS = [
    (name, section)
    for name, path in zip(NAMES, FILES, strict=True)
    for section in {"cvpo": {}} | yaml.safe_load(path.read_text())
    if section != "all"
]


def written(path, text):
    path.write_text(text)
    return str(path)


def test_recipe_wins_over_all_and_flags_over_both(tmp_path):
    text = (
        "all: {env: {id: PointCircle}, critics: {gamma: 0.9, hidden_sizes: [8, 9]}, run.total_frames: 700}\n"
    )
    text += (
        "cvpo: {critics: {gamma: 0.8, layer-norm: false}, run: {seed: 3}}\nsac_lag: {entropy: {lr: 0.5}}\n"
    )
    where = written(tmp_path / "a.yaml", text)
    config = parse_config(cvpo.Config, ["--settings", where, "--seed", "4"])
    given = {"gamma": 0.8, "layer_norm": False, "hidden_sizes": (8, 9)}
    default = cvpo.Config()
    assert config == dataclasses.replace(
        default,
        env=dataclasses.replace(default.env, id="PointCircle"),
        critics=dataclasses.replace(default.critics, **given),
        run=dataclasses.replace(default.run, seed=4, total_frames=700, settings=where),
    )
    assert parse_config(sac_lag.Config, ["--settings", where]).entropy.lr == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("all: {critics: {gama: 0.9}}", r"a\.yaml, all has no setting critics\.gama; .*critics\.gamma"),
        ("cvpo: {gamma: 0.9}", r"a\.yaml, cvpo has no setting gamma; did you mean critics\.gamma"),
        ("all: {critics: {gamma: high}}", "critics.gamma is 'high', must be of type float"),
        ("all: {critics: {gamma: 2e}}", "critics.gamma is '2e', must be of type float"),
        ("all: {critics: {gamma: 2}}", r"critics.gamma is 2.0, must be in \(0, 1\]"),
        ("cvop: {critics: {gamma: 0.9}}", "section 'cvop': it must be 'all' or the name of a recipe"),
        ("critics: {gamma: 0.9}", "section 'critics': it must be"),
        ("all: 0.9", "the section all must hold settings, but it holds 0.9"),
        ("all:", "the section all must hold settings, but it holds None"),
        ("- 1", r"must hold a mapping, but it holds \[1\]"),
        ("all: {env: {id: x}", "is not YAML"),
        ("", "must hold a mapping, but it holds None"),
    ],
)
def test_bad_files_end_in_one_line(tmp_path, text, said):
    with pytest.raises(SystemExit, match=said) as stop:
        parse_config(cvpo.Config, ["--settings", written(tmp_path / "a.yaml", text)])
    assert "\n" not in str(stop.value)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(SystemExit, match=f"'Nowhere'.*holds.*{NAMES[0]}"):
        parse_config(cvpo.Config, ["--settings=Nowhere"])


def holds(whole, part):
    """Whether all of a file's section is found again in a configuration; choices and single items by name."""
    if isinstance(part, dict):
        if len(whole) == 1 and not whole.keys() & part.keys():  # a choice and its settings
            (whole,) = whole.values()
        return all(key in whole and holds(whole[key], part[key]) for key in part)
    return part in (whole, *(whole if isinstance(whole, (list, dict)) and len(whole) == 1 else ()))


@pytest.mark.parametrize(("name", "recipe"), SECTIONS)
def test_every_section_is_read_by_its_recipe(name, recipe):
    config = parse_config(load_recipe(recipe_file(recipe)).Config, ["--settings", name])
    assert config.run.settings == name
    assert config.env.id == name.rpartition("/")[-1]
    sections = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    plain = config_to_dict(config)
    assert holds(plain, sections["all"])
    assert holds(plain, sections.get(recipe, {}))
    assert not holds(plain, {"env": {"id": "another"}})


@pytest.mark.parametrize(
    ("name", "recipe", "path", "value"),
    [
        ("PointCircle", "cvpo", "run.total_frames", 1_500_000),
        ("PointCircle", "cvpo", "budget.cost_limit", (25.0,)),
        ("PointCircle", "cvpo", "policy.hidden_sizes", (64, 64)),
        ("PointCircle", "cvpo", "critics.hidden_sizes", (64, 64)),
        ("PointCircle", "cvpo", "multiplier.max", 3.0),
        ("PointCircle", "cvpo", "trust_region", "retract"),
        ("PointCircle", "cvpo", "trust_region.kl_cov", 0.005),
        ("PointCircle", "cvpo", "reference", "copy"),
        ("PointCircle", "cvpo", "budget.feedback", "none"),
        ("PointCircle", "sac_lag", "policy.hidden_sizes", (64, 64)),
        ("PointCircle", "sac_lag", "critics.hidden_sizes", (64, 64)),
        ("SafetyBallRun-v0", "cvpo", "budget.feedback", "pid"),
        ("SafetyBallRun-v0", "cvpo", "budget.feedback.max", 2.0),
        ("SafetyBallRun-v0", "cvpo", "budget.feedback.kp", 0.02),
        ("SafetyBallRun-v0", "cvpo", "estep.critics", "online"),
        ("SafetyBallRun-v0", "sac_lag", "critics.n_step", 2),
        ("SafetyCarCircle-v0", "cvpo", "budget.feedback", "gradient"),
        ("SafetyCarCircle-v0", "cvpo", "budget.feedback.lr", 0.002),
        ("SafetyCarCircle-v0", "cvpo", "budget.feedback.max", 0.2),
        ("SafetyCarRun-v0", "cvpo", "trust_region.kl_mean", 0.02),
        ("SafetyHalfCheetahVelocity-v1", "cvpo", "trust_region", "hard"),
        ("SafetyHalfCheetahVelocity-v1", "cvpo", "trust_region.lr", 0.1),
        ("SafetyHalfCheetahVelocity-v1", "sac_lag", "multiplier", "pid"),
        ("SafetyHopperVelocity-v1", "sac_lag", "multiplier", "gradient"),
        ("SafetyHopperVelocity-v1", "sac_lag", "multiplier.lr", 0.003),
        ("SafetyPointButton1-v0", "cvpo", "replay.window", 100_000),
        ("SafetyPointButton1-v0", "cvpo", "budget.feedback.max", 1.0),
        ("SafetyPointCircle1-v0", "cvpo", "budget.feedback", "none"),
        ("SafetyPointCircle1-v0", "cvpo", "env.frame_skip", 4),
        ("SafetyPointGoal1-v0", "cvpo", "critics.reward_members", 1),
        ("SafetyPointGoal1-v0", "sac_lag", "multiplier.lr", 0.0002),
    ],
)
def test_values_arrive_where_they_should(name, recipe, path, value):
    config = parse_config(load_recipe(recipe_file(recipe)).Config, ["--settings", f"v0.1/{name}"])
    assert leaves(config)[path] == value
