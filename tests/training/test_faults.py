"""What a run survives: the table in docs/runs.md, with a test for each line that no other file tests."""

import contextlib
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest
import torch
from cost_envs import Corridor
from gymnasium.envs.registration import EnvSpec
from small_runs import small
from test_checkpoint import checkpoint, components, load, train
from test_loop import loop  # noqa: F401  # a fixture

import cvpo
import ppo_lag
from safe_components.collectors import OverlappedCollector
from safe_components.envs import make_env
from safe_components.policies import gaussian_policy
from safe_components.training import (
    RecipeConfig,
    Run,
    RunConfig,
    StopRequest,
    explained_errors,
    launch,
    load_config,
    parse_config,
    with_run,
    workers_ignore_interrupt,
)
from safe_components.training.options import CollectConfig


@pytest.fixture
def no_picture(monkeypatch):
    monkeypatch.setattr(Run, "draw", lambda self: None)


@pytest.fixture
def run_dir(tmp_path, no_picture):
    train(tmp_path / "run", 40)
    return tmp_path / "run"


@contextlib.contextmanager
def full_disk(allowed):
    """Files cannot grow beyond ``allowed`` bytes, which the operating system refuses as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def resumed(run_dir, total=60):
    config = RunConfig(resume=run_dir, total_frames=total, loggers=(), progress=False)
    return Run(RecipeConfig(run=config), **components())


def test_a_full_disk_during_a_checkpoint_is_one_line_and_keeps_the_last_one(run_dir, capsys):
    def main(config):
        with resumed(run_dir) as run:
            run.advance(10)
            with full_disk(500):
                run.save()

    with pytest.raises(SystemExit, match=r"^error: the checkpoint \S*50 cannot be written: .*too large$"):
        launch(main, RecipeConfig, ["--env.id", "PointCircle"])
    assert f"the last checkpoint is kept: {checkpoint(run_dir, 40)}" in capsys.readouterr().out
    assert {path.name for path in (run_dir / "checkpoint").iterdir()} == {
        checkpoint(run_dir, frames).name for frames in (30, 40)
    }
    assert load(run_dir)[1] == 40.0


def test_a_full_disk_during_a_row_is_one_line(run_dir):
    def main(config):
        with resumed(run_dir) as run:
            run.advance(10)
            with full_disk((run_dir / "metrics.csv").stat().st_size + 5):
                run.log({"episode_reward": 1.0, "episode_cost": 0.0})

    with pytest.raises(SystemExit, match=r"^error: \S*metrics\.csv cannot be written: .*File too large$"):
        launch(main, RecipeConfig, ["--env.id", "PointCircle"])
    assert train(run_dir, 50, resume=True) == 50.0


def test_a_directory_that_becomes_read_only_is_one_line(run_dir, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    def main(config):
        with resumed(run_dir) as run:
            run.advance(10)
            monkeypatch.setattr(Path, "mkdir", refuse)
            run.save()

    with pytest.raises(SystemExit, match=r"^error: the checkpoint \S*50 cannot be written: .*Read-only"):
        launch(main, RecipeConfig, ["--env.id", "PointCircle"])
    assert load(run_dir)[1] == 40.0


@pytest.mark.slow
def test_a_process_killed_during_a_checkpoint_leaves_the_one_before(run_dir, capsys):
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from test_faults import resumed
from safe_components.training import checkpoint
write, written = checkpoint.write_state, []
def killed(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
with resumed(Path({str(run_dir)!r})) as run:
    run.advance(10)
    checkpoint.write_state = killed
    run.save()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == -9
    assert (run_dir / "checkpoint" / ".stage-checkpoint-000000000050").is_dir()
    assert train(run_dir, 50, resume=True) == 50.0
    assert "which an interrupted process left behind" in capsys.readouterr().out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_saves_and_stops(signum, tmp_path, no_picture):
    config = RunConfig(run_dir=tmp_path / "run", total_frames=1000, loggers=(), progress=False)
    with Run(RecipeConfig(run=config), **components()) as run:
        while not run.finished:
            run.advance(10)
            run.log({"episode_reward": 1.0, "episode_cost": 0.0})
            if run.frames == 30:
                signal.raise_signal(signum)
    assert checkpoint(tmp_path / "run", 30).is_dir()


def test_the_second_ctrl_c_is_no_traceback(run_dir):
    def main(config):
        with resumed(run_dir):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit) as stopped:
        launch(main, RecipeConfig, ["--env.id", "PointCircle"])
    assert stopped.value.code == 130


def test_ctrl_c_while_workers_start_is_not_lost():
    with StopRequest() as stop:
        with workers_ignore_interrupt():
            signal.raise_signal(signal.SIGINT)
            child = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import signal; signal.raise_signal(2); print('alive')",
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            assert child.stdout == "alive\n"
            assert not stop
        assert stop


def test_ctrl_c_during_the_random_steps_saves_what_was_collected(tmp_path, monkeypatch, no_picture):
    warm_up = cvpo.Task.warm_up

    def pressed(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return warm_up(self, *args, **kwargs)

    monkeypatch.setattr(cvpo.Task, "warm_up", pressed)
    cvpo.main(small(cvpo, "--run-dir", tmp_path / "run"))
    assert checkpoint(tmp_path / "run", 400).is_dir()


@pytest.mark.parametrize("due", ["row", "checkpoint"])
def test_a_critic_that_diverges_stops_the_run(due, loop):  # noqa: F811
    intervals = {"log_interval": 1000, "checkpoint_interval": 1000} | (
        {"log_interval": 40} if due == "row" else {"checkpoint_interval": 40}
    )
    looped = loop(CollectConfig(frames_per_batch=20), total_frames=1000, eval_interval=0, **intervals)

    def learn():
        with looped.run:
            for _ in looped.collect():
                looped.record({"loss_q_cost": torch.tensor(1e23)})
                looped.report()

    with pytest.raises(FloatingPointError, match=r"loss_q_cost is 1e\+23 at frame 40: the critic diverges"):
        learn()
    assert not (looped.run.directory / "checkpoint").exists()


class Breaking(Corridor):
    """Goes wrong in its 30th step if ``fault`` says so."""

    fault = None

    def step(self, action):
        observation, *rest = super().step(action)
        if self.fault is not None and len(self.executed) >= 30:
            if self.fault == "raises":
                raise ZeroDivisionError("by zero")
            if self.fault == "hangs":
                time.sleep(60)
            observation = observation * math.nan
        return observation, *rest


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", r"step\(\) of {where} raised ZeroDivisionError: by zero \(\S*test_faults\.py:\d+\)"),
        ("hangs", r"step\(\) of {where} did not return within 0\.5 s \(step_timeout\)"),
        ("nan", r"observation is nan in {where}"),
    ],
)
def test_an_environment_that_goes_wrong_is_one_line_and_the_run_goes_on_once_it_is_mended(
    fault, said, tmp_path, monkeypatch, no_picture, capsys
):
    monkeypatch.setitem(gymnasium.registry, "Breaking-v0", EnvSpec("Breaking-v0", Breaking))
    monkeypatch.setattr(Breaking, "fault", fault)
    config = small(
        ppo_lag,
        env={"id": "Breaking-v0", "num_envs": 2, "step_timeout": 0.5},
        run={"run_dir": tmp_path / "run", "checkpoint_interval": 20},
        collect={"frames_per_batch": 20, "warmup_frames": 20},
    )
    where = r"environment \d of 2 at step \d+ of its episode \(Breaking\S*\)"
    with pytest.raises(SystemExit, match=f"^error: {said.format(where=where)}"), explained_errors(False):
        ppo_lag.main(config)
    told = re.search(
        r"stopped by \w+ at (\d+) frames .*the last checkpoint is kept: (\S+)", capsys.readouterr().out
    )
    assert told is not None
    assert Path(told[2]).is_dir()
    monkeypatch.setattr(Breaking, "fault", None)
    reached = int(told[1]) + 40
    ppo_lag.main(with_run(load_config(ppo_lag.Config, tmp_path / "run"), total_frames=reached))
    assert checkpoint(tmp_path / "run", reached).is_dir()


def make_point_circle():
    return make_env("PointCircle", num_envs=2)


@pytest.mark.slow
def test_a_frozen_worker_is_ended():
    policy = gaussian_policy(4, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
    collector = OverlappedCollector(make_point_circle, policy, frames_per_batch=4, num_workers=1, seed=0)
    next(iter(collector))
    (process,) = collector._collector.procs
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)
    collector.shutdown(timeout=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_intervals_and_workers_may_change_at_a_resume(run_dir):
    flags = ["--log-interval", "7", "--checkpoint-interval", "8", "--eval-episodes", "3"]
    config = parse_config(RecipeConfig, ["--resume", str(run_dir), "--total-frames", "50", *flags])
    assert (config.run.log_interval, config.run.checkpoint_interval, config.run.eval_episodes) == (7, 8, 3)
    with pytest.raises(SystemExit, match="eval_interval: saved 20000, now 9"):
        parse_config(RecipeConfig, ["--resume", str(run_dir), "--eval-interval", "9"])


def test_a_warm_start_takes_policy_and_scaling_from_another_run(tmp_path, training):
    _, first = training(cvpo, "--total-frames", 600, name="first")
    config = small(cvpo, "--run-dir", tmp_path / "second", "--warm-start", tmp_path / "first", "--seed", 5)
    task = cvpo.Task(config)
    learner = cvpo.CVPO(config, task)
    with Run(config, learner=learner, policy=learner.policy, norm=task.norm) as run:
        assert run.frames == 0
    assert float(task.norm.scale.mean()) != 1.0
    for name, value in first.policy.state_dict().items():
        assert torch.equal(learner.policy.state_dict()[name], value), name
    for ours, policy in zip(
        learner.mstep.target_policy_params.values(True, True),
        learner.mstep.policy_params.values(True, True),
        strict=True,
    ):
        assert torch.equal(ours, policy)
    config = with_run(load_config(cvpo.Config, tmp_path / "second"), resume=None, run_dir=tmp_path / "third")
    with pytest.raises(FileNotFoundError, match="warm_start: nowhere is not a run directory"):
        cvpo.main(with_run(config, warm_start=Path("nowhere")))
