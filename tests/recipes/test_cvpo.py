"""The CVPO recipe: a short run, its resumption after every kind of stop, its errors."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from small_runs import restored, small
from tensordict import TensorDict

import cvpo
from safe_components.training import Task, config_to_dict, load_config, read_metrics, with_run

RECIPE = Path(__file__).parents[2] / "recipes" / "cvpo.py"


def resume(directory, frames):
    return cvpo.main(with_run(load_config(cvpo.Config, directory), total_frames=frames))


def test_a_run_leaves_what_the_readme_promises(tmp_path, training):
    rows, _ = training(cvpo, "--eval-interval", 400, "--loggers", "tensorboard")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint", "config.yaml", "curves.png", "diagnosis.png", "episodes.csv", "metrics.csv",
        "tensorboard",
    }  # fmt: skip
    assert rows["frames"].tolist() == [600, 800, 1000, 1200]  # the first after 400 random steps
    assert rows["updates"].tolist() == [4, 8, 12, 16]
    assert rows["episodes"].tolist() == [12, 4, 4, 4]
    assert np.isfinite(rows["eval_cost"]).tolist() == [True, True, False, True]
    assert (rows["estep_kl"] <= cvpo.Config().estep.epsilon + 1e-6).all()
    assert (rows["estep_residual"] < 1e-6).all()
    page = (RECIPE.parents[1] / "docs" / "metrics.md").read_text()
    assert {name for name in rows if f"`{name}`" not in page} == set()
    # d_Q = d (1 - gamma^T) / ((1 - gamma) T) with d = 25 and T = 50 / frame_skip decisions.
    gamma, length = cvpo.Config().critics.gamma, 50
    expected = 25 * (1 - gamma**length) / ((1 - gamma) * length)
    np.testing.assert_allclose(rows["q_cost_limit"], expected, rtol=1e-6)


def test_the_same_seed_gives_the_same_numbers(training):
    a, b = (training(cvpo, "--total-frames", 800, name=name)[0] for name in ("a", "b"))
    for name in {name for name in a if "second" not in name}:  # all but times
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_resuming_continues_everything(tmp_path, training):
    before, _ = training(cvpo, "--total-frames", 800, "--trust-region.lr", 0.01)
    resume(tmp_path / "run", 1200)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert rows["frames"].tolist() == [600, 800, 1000, 1200]
    assert rows["updates"].tolist() == [4, 8, 12, 16]
    # Multipliers of the trust region move by at most ~1 % an Adam step, so a lost state would show as a jump
    # back to the initial value.
    assert abs(rows["alpha_mean"][2] - before["alpha_mean"][-1]) < 0.1 * before["alpha_mean"][-1] + 0.05


def tensors(state, prefix=""):
    """Every tensor of a nested state dict, by its place."""
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= tensors(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            found[f"{prefix}{key}"] = value.clone()
    return found


def test_the_learners_state_is_the_checkpoint(tmp_path, training):
    _, learner = training(cvpo, "--total-frames", 800)
    saved = tensors(learner.state_dict())
    assert {"estep.eta", "mstep.trust_region.raw", "_extra_state.critics.optim.state.0.exp_avg"} <= set(saved)
    found = tensors(restored(cvpo, tmp_path / "run", learner).state_dict())
    assert found.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(found[name], value), name


def start(directory, *flags):
    config = directory.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(config_to_dict(small(cvpo))))
    command = [sys.executable, str(RECIPE), "--config", str(config), "--run-dir", str(directory), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_frames(directory, frames, process):
    path = directory / "metrics.csv"
    for _ in range(1200):
        if path.is_file() and path.read_text().count("\n") > (frames - 400) // 200:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError(f"{frames} frames were not reached in 60 s")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_loses_at_most_the_work_since_its_last_checkpoint(tmp_path, signum):
    directory = tmp_path / "run"
    process = start(directory, "--total-frames", "10000000")
    wait_for_frames(directory, 1000, process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    if signum == signal.SIGINT:
        assert process.returncode == 0
        assert "the run will be saved" in output
    stopped_at = read_metrics(directory / "metrics.csv")["frames"].max()
    saved = max(int(path.name.rsplit("-", 1)[1]) for path in (directory / "checkpoint").glob("checkpoint-*"))
    assert saved > stopped_at - 600  # checkpoint interval 400, and the row of 200 frames under way
    resume(directory, saved + 400)
    frames = read_metrics(directory / "metrics.csv")["frames"]
    assert frames.tolist() == list(range(600, saved + 401, 200))


class Faulty(gymnasium.Env):
    """Its reward is NaN at step 1300 of the process."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        type(self).steps += 1
        reward = math.nan if self.steps == 1300 else 0.0
        return np.zeros(2, np.float32), reward, False, False, {"cost": 0}


@pytest.fixture
def faulty():
    gymnasium.register("Faulty-v0", entry_point=Faulty, max_episode_steps=50)
    Faulty.steps = 0
    yield
    del gymnasium.registry["Faulty-v0"]


def test_a_reward_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, faulty):
    config = small(cvpo, "--run-dir", tmp_path / "run", "--total-frames", 4000, "--env.id", "Faulty-v0")
    with pytest.raises(FloatingPointError, match=r"^reward is nan in environment \d of 4 at step \d+"):
        cvpo.main(config)
    assert list((tmp_path / "run" / "checkpoint").iterdir())


def test_a_score_that_is_not_finite_stops_the_update_and_names_the_key(tmp_path):
    config = small(cvpo)
    learner = cvpo.CVPO(config, Task(config))
    with torch.no_grad():
        for parameter in learner.critics.target_params.values(True, True):
            parameter.fill_(math.inf)
    states = TensorDict(observation=torch.zeros(32, 4), batch_size=[32])
    with pytest.raises(FloatingPointError, match=r"\('particles', 'q_reward'\)"):
        learner.improve(states)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env.id", "SafetyPointCircl1-v0"], "SafetyPointCircle1-v0"),
        (["--env.id", "Pendulum-v1"], "cost"),
        (["--cost-limit", "25", "10"], "2 limits"),
        (["--cost-limit", "-1"], "cost_limit"),
        (["--estep.epsilon", "0"], "estep.epsilon"),
        (["--estep.num-particles", "1"], "num_particles"),
        (["--trust-region.kl-mean", "-0.1"], "trust_region.kl_mean"),
        (["--critics.gamma", "1.5"], "critics.gamma"),
        (["--mstep.iterations", "0"], "mstep.iterations"),
        (["--budget.start", "30", "20"], "start"),
        (["--budget.start", "30", "--budget.decay-frames", "0"], "decay_frames"),
        (["--trust-region", "soft", "--trust-region.coef-mean", "-1"], "coef_mean"),
        (["--multiplier", "gradient", "--multiplier.lr", "0"], "multiplier.lr is 0.0"),
        (["--replay.window", "0"], "replay.window"),
        (["--trust-region", "retract", "--trust-region.kl-cov", "0"], "kl_cov"),
        (["--device", "cuda:99"], "finds . CUDA devices"),
        (["--collect.frames-per-batch", "1", "--env.frame-skip", "2"], "frames_per_batch"),
        (["--settings", "PointSquare"], "PointCircle"),
        (["--env.limits", "5", "75"], "take the recipe ppo_lag"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, flags, said):
    arguments = ["--env.id", "PointCircle", "--run-dir", str(tmp_path / "run"), *flags]
    with pytest.raises(SystemExit, match=said) as stop:
        cvpo.launch(cvpo.main, cvpo.Config, arguments)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use_is_refused(training):
    training(cvpo, "--total-frames", 600)
    with pytest.raises(FileExistsError, match="already holds a run"):
        training(cvpo, "--total-frames", 600)


def test_two_costs_two_limits(training):
    flags = ("--eval-interval", 400, "--cost-limit", 5, 10, "--env.cost-keys", "walls", "speed")
    rows, _ = training(cvpo, "--total-frames", 800, *flags)
    assert np.isfinite(rows["lambda_speed"][-1])
    assert np.isfinite(rows["eval_cost_speed"][-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_cuda(training):
    training(cvpo, "--total-frames", 800, "--device", "cuda")


def test_safety_gymnasium_trains(training):
    rows, _ = training(cvpo, "--total-frames", 800, "--env.id", "SafetyPointCircle1-v0")
    assert np.isfinite(rows["estep_cost"][-1])
