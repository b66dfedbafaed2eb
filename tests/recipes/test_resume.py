"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import numpy as np
import pytest
import torch
from small_runs import small
from test_cvpo import tensors

import cvpo
import ppo_lag
import sac_lag
import td3_lag
from safe_components.training import Run, load_config, read_metrics, with_run

RECIPES = {"cvpo": cvpo, "sac_lag": sac_lag, "td3_lag": td3_lag, "ppo_lag": ppo_lag}
SETTINGS = [
    ("cvpo", ("--trust-region", "retract", "--reference", "copy", "--budget.feedback", "pid")),
    ("cvpo", ("--trust-region", "soft", "--multiplier", "gradient", "--critics.n-step", 1)),
    ("cvpo", ("--multiplier", "pid", "--budget.start", 40, "--budget.decay-frames", 700)),
    ("cvpo", ("--collect.deterministic-share", 0.5)),
    ("cvpo", ("--policy", "tanh", "--estep.entropy-coef", 0.01)),
    ("sac_lag", ()),
    ("sac_lag", ("--augmentation", "cal", "--multiplier", "gradient")),
    ("td3_lag", ()),
    ("ppo_lag", ("--algorithm", "focops", "--multiplier", "crpo")),
    ("ppo_lag", ("--env.limits", 5, 75)),
]


def same_rows(ours, theirs):
    assert list(ours) == list(theirs)
    for name in (name for name in ours if "second" not in name):  # all but times
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def resumed_equals_unstopped(recipe, flags, tmp_path, training, stop=500, total=800, **settings):
    """Stop in the middle of episodes, of n-step windows, and of the interval between two rows."""
    flags = ("--collect.frames-per-batch", 100, "--total-frames", total, *flags)
    rows, whole = training(recipe, *flags, name="whole", **settings)
    with pytest.MonkeyPatch.context() as patch:  # as if Ctrl-C were pressed there
        patch.setattr(Run, "finished", property(lambda run: run.frames >= stop))
        recipe.main(small(recipe, "--run-dir", tmp_path / "split", *flags, **settings))
    torch.manual_seed(99)
    split = recipe.main(load_config(recipe.Config, tmp_path / "split"))
    ours, theirs = tensors(split.state_dict()), tensors(whole.state_dict())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    same_rows(read_metrics(tmp_path / "split" / "metrics.csv"), rows)


@pytest.mark.parametrize(
    ("name", "flags"), SETTINGS, ids=lambda value: value if isinstance(value, str) else None
)
def test_point_circle(name, flags, tmp_path, training):
    resumed_equals_unstopped(RECIPES[name], flags, tmp_path, training)


def test_a_run_stopped_after_its_random_steps(tmp_path, training):
    resumed_equals_unstopped(cvpo, (), tmp_path, training, stop=400, total=600)


@pytest.mark.parametrize("name", ["cvpo", "ppo_lag"])
def test_safety_gymnasium(name, tmp_path, training):
    flags = ("--env.id", "SafetyPointGoal1-v0", "--env.max-episode-steps", 60)
    resumed_equals_unstopped(RECIPES[name], flags, tmp_path, training, stop=500, total=600)


@pytest.mark.slow
def test_environments_in_processes_start_new_episodes_and_say_so(tmp_path, capsys):
    flags = ("--collect.workers", 2, "--collect.frames-per-batch", 100)
    cvpo.main(small(cvpo, "--run-dir", tmp_path / "run", *flags, "--total-frames", 500))
    cvpo.main(with_run(load_config(cvpo.Config, tmp_path / "run"), total_frames=600))
    assert "new episodes start at frame 500: worker processes collect" in capsys.readouterr().out


def test_evaluation_leaves_no_trace_in_training(tmp_path, training):
    one, _ = training(cvpo, "--total-frames", 600, "--eval-interval", 0, name="one")
    often = ("--eval-interval", 200, "--eval-episodes", 7)
    other, _ = training(cvpo, "--total-frames", 600, *often, name="other")
    for name in (name for name in one if "second" not in name):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
