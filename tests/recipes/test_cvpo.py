"""The CVPO recipe: a short run, its resumption after every kind of stop, its errors."""

import dataclasses
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

import cvpo
from safe_components.training import load_config, read_metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "cvpo.py"
SMALL = (
    "--env.id PointCircle --env.num-envs 4 --env.frame-skip 1 --env.max-episode-steps 50 --seed 0 "
    "--hidden-sizes 16 16 --num-particles 4 --batch-size 32 --buffer-size 2000 --updates-per-frame 0.02 "
    "--warmup-frames 400 --critic-warmup 5 --frames-per-batch 200 --log-interval 200 --eval-interval 400 "
    "--eval-episodes 2 --checkpoint-interval 400 --threads 1 --no-progress"
).split()


def run(*flags):
    cvpo.launch(cvpo.main, cvpo.Config, [*SMALL, *flags])


def test_a_run_leaves_what_the_readme_promises(tmp_path):
    directory = tmp_path / "run"
    run("--run-dir", str(directory), "--total-frames", "1200")
    assert {path.name for path in directory.iterdir()} == {
        "checkpoint", "config.yaml", "curves.png", "metrics.csv", "tensorboard",
    }  # fmt: skip
    rows = read_metrics(directory / "metrics.csv")
    assert rows["frames"].tolist() == [600, 800, 1000, 1200]  # the first after 400 random steps
    assert rows["updates"].tolist() == [4, 8, 12, 16]
    assert rows["episodes"].tolist() == [12, 4, 4, 4]
    assert np.isfinite(rows["eval_cost"]).tolist() == [False, True, False, True]
    assert (rows["estep_kl"] <= cvpo.Config().epsilon + 1e-6).all()
    assert (rows["estep_residual"] < 1e-6).all()
    page = (RECIPE.parents[1] / "docs" / "metrics.md").read_text()
    assert {name for name in rows if f"`{name}`" not in page} == set()
    # d_Q = d (1 - gamma^T) / ((1 - gamma) T) with d = 25 and T = 50 / frame_skip decisions.
    gamma, length = cvpo.Config().gamma, 50
    expected = 25 * (1 - gamma**length) / ((1 - gamma) * length)
    np.testing.assert_allclose(rows["q_cost_limit"], expected, rtol=1e-6)


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    for name in ("a", "b"):
        run("--run-dir", str(tmp_path / name), "--total-frames", "800")
    a, b = (read_metrics(tmp_path / name / "metrics.csv") for name in ("a", "b"))
    for name in {name for name in a if "second" not in name}:  # all but times
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_resuming_continues_everything(tmp_path):
    directory = tmp_path / "run"
    run("--run-dir", str(directory), "--total-frames", "800")
    before = read_metrics(directory / "metrics.csv")
    config = load_config(cvpo.Config, directory)
    cvpo.main(dataclasses.replace(config, total_frames=1200))
    rows = read_metrics(directory / "metrics.csv")
    assert rows["frames"].tolist() == [600, 800, 1000, 1200]
    assert rows["updates"].tolist() == [4, 8, 12, 16]
    # Multipliers of trust region move by at most ~1 % an Adam step, so a lost state would show as a jump
    # back to the initial value.
    assert abs(rows["alpha_mean"][2] - before["alpha_mean"][-1]) < 0.1 * before["alpha_mean"][-1] + 0.05


def test_a_checkpoint_holds_duals_buffer_and_optimisers(tmp_path, monkeypatch):
    saved = {}

    class Spy(cvpo.Run):
        def __init__(self, config, name, **components):
            saved[config.resume is not None] = components
            super().__init__(config, name, **components)
            if config.resume is not None:
                saved["restored"] = snapshot(components)

        def save(self):
            saved["last"] = snapshot(saved[True in saved])
            return super().save()

    def snapshot(components):
        return {
            "eta": components["estep"].eta.clone(),
            "buffer": components["buffer"][:]["observation"].clone(),
            "moments": [state["exp_avg"].clone() for state in components["critic_optim"].state.values()],
            "alpha": [p.detach().clone() for p in components["mstep"].trust_region.parameters()],
        }

    monkeypatch.setattr(cvpo, "Run", Spy)
    directory = tmp_path / "run"
    run("--run-dir", str(directory), "--total-frames", "800")
    last = saved["last"]
    cvpo.main(dataclasses.replace(load_config(cvpo.Config, directory), total_frames=1000))
    restored = saved["restored"]
    assert math.isfinite(last["eta"])
    assert torch.equal(restored["eta"], last["eta"])
    assert len(last["buffer"]) > 500
    assert torch.equal(restored["buffer"], last["buffer"])
    assert len(last["moments"]) > 0
    for name in ("moments", "alpha"):
        assert all(torch.equal(a, b) for a, b in zip(restored[name], last[name], strict=True))


def start(directory, *flags):
    command = [sys.executable, str(RECIPE), *SMALL, "--run-dir", str(directory), *flags]
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
    config = load_config(cvpo.Config, directory)
    cvpo.main(dataclasses.replace(config, total_frames=saved + 400))
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
    directory = tmp_path / "run"
    with pytest.raises(SystemExit, match=r"^error: reward is nan in environment \d of 4 at step \d+"):
        run(
            "--run-dir",
            str(directory),
            "--total-frames",
            "4000",
            "--env.id",
            "Faulty-v0",
            "--eval-interval",
            "0",
        )
    assert list((directory / "checkpoint").iterdir())


def test_a_q_value_that_is_not_finite_names_key_and_update(tmp_path, monkeypatch):
    sampler = cvpo.ParticleSampler

    def broken(*args, **kwargs):
        module = sampler(*args, **kwargs)
        module.register_forward_hook(lambda _, inputs, out: out["particles", "q_cost"].fill_(math.inf))
        return module

    monkeypatch.setattr(cvpo, "ParticleSampler", broken)
    with pytest.raises(SystemExit, match=r"\('particles', 'q_cost'\).* at update 0"):
        run("--run-dir", str(tmp_path / "run"), "--total-frames", "1000")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env.id", "SafetyPointCircl1-v0"], "SafetyPointCircle1-v0"),
        (["--env.id", "Pendulum-v1"], "cost"),
        (["--cost-limit", "25", "10"], "2 limits"),
        (["--cost-limit", "-1"], "cost_limit"),
        (["--epsilon", "0"], "epsilon"),
        (["--num-particles", "1"], "num_particles"),
        (["--kl-mean", "-0.1"], "kl_mean"),
        (["--gamma", "1.5"], "gamma"),
        (["--m-iterations", "0"], "m_iterations"),
        (["--device", "cuda:99"], "finds . CUDA devices"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, flags, said):
    with pytest.raises(SystemExit, match=said) as stop:
        run("--run-dir", str(tmp_path / "run"), "--total-frames", "1000", *flags)
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use_is_refused(tmp_path):
    run("--run-dir", str(tmp_path / "run"), "--total-frames", "200")
    with pytest.raises(SystemExit, match="already holds a run"):
        run("--run-dir", str(tmp_path / "run"), "--total-frames", "200")


def test_two_costs_two_limits(tmp_path):
    directory = tmp_path / "run"
    run("--run-dir", str(directory), "--total-frames", "800", "--cost-limit", "5", "10",
        "--env.cost-keys", "walls", "speed")  # fmt: skip
    rows = read_metrics(directory / "metrics.csv")
    assert np.isfinite(rows["lambda_1"][-1])
    assert np.isfinite(rows["eval_cost_1"][-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_cuda(tmp_path):
    run("--run-dir", str(tmp_path / "run"), "--total-frames", "800", "--device", "cuda")


def test_safety_gymnasium_trains(tmp_path):
    directory = tmp_path / "run"
    run("--run-dir", str(directory), "--total-frames", "800", "--env.id", "SafetyPointCircle1-v0")
    assert np.isfinite(read_metrics(directory / "metrics.csv")["estep_cost"][-1])
