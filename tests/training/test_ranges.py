"""Every number of every recipe is refused in one line before anything is made, or is one to train with."""

import re
import typing
from types import UnionType

import pytest
from small_runs import small

import cvpo
import discrete_cvpo
import ppo_lag
import sac_lag
import td3_lag
from safe_components.training import Loop, overlay, parse_config
from safe_components.training.config import _bare, choices_of, fields, validate

RECIPES = {recipe.Config.recipe: recipe for recipe in (cvpo, discrete_cvpo, sac_lag, td3_lag, ppo_lag)}
NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e30", str(10**18), str(10**40)]

# What 0 means where it is allowed.
ZERO = {
    "run.seed", "run.eval_interval", "budget.cost_limit", "budget.start", "collect.updates_per_frame",
    "collect.workers", "collect.deterministic_share", "critics.cost_std", "critics.polyak",
    "critics.warmup_updates", "reference.eps", "policy.polyak", "policy.exploration_std",
    "algorithm.smoothing_std", "algorithm.smoothing_clip",
    "entropy.target", "advantage.gae_lambda", "update.kl_stop", "algorithm.entropy_coef",
    "estep.entropy_coef", "multiplier.tolerance", "env.saute",
    *(f"{of}.{name}" for of in ("multiplier", "budget.feedback") for name in ("kp", "ki", "kd", "init")),
    "trust_region.coef_mean", "trust_region.coef_cov",
}  # fmt: skip


def kinds(hint):
    """The types that an option may have, and "list" if it takes several values."""
    hint = _bare(hint)
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return set().union(*map(kinds, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return kinds(typing.get_args(hint)[0]) | {"list"}
    return {hint}


def numbers_of(recipe):
    """Every numeric option of a recipe: the configuration that has it, its path and its types."""
    base, seen = small(recipe), {}
    choices = [(path, name) for path, hint, _ in fields(base) for name in choices_of(hint)]
    for config in (base, *(overlay(base, {path: name}, "here") for path, name in choices)):
        for path, hint, _ in fields(config):
            if not choices_of(hint) and kinds(hint) & {int, float}:
                seen.setdefault(path, (config, kinds(hint)))
    return [(path, *rest) for path, rest in seen.items()]


def accepted(config, path, value):
    """Whether a value is accepted by the checks of the command line; if not, it is named in one line."""
    try:
        validate(overlay(config, {path: value}, "here"))
    except ValueError as error:
        said = str(error)
    else:
        return True
    assert re.fullmatch(r"here: \S+ is .*, must be .*", said), said
    assert path in said
    return False


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_no_number_is_out_of_range_in_silence(recipe):
    options = numbers_of(recipe)
    assert len(options) > 30
    taken = {number: set() for number in (*NUMBERS, "")}
    for path, config, types in options:
        for number in NUMBERS:
            whole = number.removeprefix("-").isdecimal()
            if accepted(config, path, int(number) if whole else float(number)):
                taken[number].add(path)
        if "list" in types and accepted(config, path, []):
            taken[""].add(path)
    for number in ("nan", "inf", "-inf", "1e30", str(10**18), str(10**40)):
        assert taken[number] == set(), number
    # An entropy of continuous actions may be negative, and so may the reward of a step without budget.
    assert taken["-1"] <= {"entropy.target", "env.saute"}
    assert taken["0"] <= ZERO, taken["0"] - ZERO
    assert taken[""] <= {"budget.start", "budget.cost_limit", "env.limits"}  # constant limits, and no cost


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--policy.lr -1", "policy.lr is -1.0, must be positive and finite"),
        ("--policy.lr 1e30", r"policy.lr is 1e\+30, must be at most 1"),
        ("--seed 1000000000000", "seed is 1000000000000, must be at most 4,294,967,295"),
        ("--policy.hidden-sizes", r"policy.hidden_sizes is \(\), must be at least one width"),
        ("--policy.hidden-sizes 8 0", "policy.hidden_sizes is 0, must be at least 1"),
        ("--cost-limit nan", "cost_limit is nan, must be finite and at least 0"),
    ],
)
def test_the_command_line_says_the_same(recipe, words, said):
    with pytest.raises(SystemExit, match=f"^error: {said}$"):
        parse_config(recipe.Config, words.split(), default=small(recipe))


class Reached(Exception):
    pass


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--cost-limit 1 2", "cost_limit holds 2 limits, but PointCircle has 1 costs"),
        ("--budget.start 1 2", "needs one limit per cost"),
        (
            "--collect.frames-per-batch 1000000000",
            "bytes of memory on cpu.* batch .*per_batch 1000000000",
        ),
        ("--collect.warmup-frames 1000000000", "bytes of memory on cpu.* batch .*warmup_frames 1000000000"),
        ("--policy.min-std 3", r"min_std=3\.0 and init_std"),
    ],
)
def test_what_depends_on_the_task_is_refused_before_the_directory_exists(
    recipe, flags, said, tmp_path, monkeypatch
):
    if flags.startswith("--policy.min-std") and recipe not in (cvpo, ppo_lag):
        pytest.skip("the policy of this recipe has no such option")

    def reached(*_):
        raise Reached

    monkeypatch.setattr(Loop, "warm_up", reached)
    config = small(recipe, "--run-dir", tmp_path / "run", *flags.split())
    with pytest.raises(ValueError, match=said) as error:
        recipe.main(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "device", ["gpu", "mps", "xpu", "meta", "cpu:1", "cuda:99", "cuda:-1", "tpu", "", "0"]
)
def test_a_device_that_cannot_train_is_refused_in_one_line(device):
    with pytest.raises(
        SystemExit, match=r"^error: device is .*(must be cpu, cuda|finds \d+ CUDA devices)"
    ) as end:
        parse_config(cvpo.Config, ["--device", device])
    assert "\n" not in str(end.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_defaults_have_the_type_of_their_option(recipe):
    for path, hint, value in fields(RECIPES[recipe].Config()):
        allowed = kinds(hint)
        if float in allowed and int not in allowed:  # older versions of tyro refuse 5000 for a float
            assert type(value) is not int, path
