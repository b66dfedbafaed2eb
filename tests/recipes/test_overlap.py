"""Collecting in other processes during the updates: same pace, same layout, stopped and resumed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
import yaml
from small_runs import small, train

import sac_lag
from safe_components.training import EnvConfig, Task, config_to_dict, load_config, read_metrics, with_run

RECIPE = Path(__file__).parents[2] / "recipes" / "sac_lag.py"


def start_config(directory):
    """A file of the small run's options, for a process of its own."""
    path = directory.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config_to_dict(small(sac_lag, "--eval-interval", 400))))
    return path


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    for name, workers in (("none", 0), ("two", 2), ("again", 2)):
        train(sac_lag, folder / name, "--eval-interval", 400, "--collect.workers", workers)
    return folder


@pytest.mark.slow
def test_frames_updates_and_episodes_are_those_of_one_process(directories):
    alone, two = (read_metrics(directories / name / "metrics.csv") for name in ("none", "two"))
    assert set(alone) == set(two)
    for name in ("frames", "updates", "episodes"):
        np.testing.assert_array_equal(alone[name], two[name], err_msg=name)
    assert two["updates"].tolist() == [4, 8, 12, 16]
    assert np.isfinite(two["eval_reward"]).tolist() == [True, True, False, True]
    # Reward over an episode of 50 steps: a worker's sum that missed its reset would add up over episodes.
    assert (np.abs(two["episode_reward"]) < 100).all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(directories):
    a, b = (read_metrics(directories / name / "metrics.csv") for name in ("two", "again"))
    for name in {name for name in a if "second" not in name}:  # all but times
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_workers_environment_is_that_of_one_process():
    """Same scaled observations, same sums over episodes: also where it is made, from a pickle."""
    task = Task(sac_lag.Config(env=EnvConfig(id="PointCircle", num_envs=4, max_episode_steps=20)))
    random = task.warm_up(4000, seed=1)
    np.testing.assert_allclose(random["observation"].flatten(0, 1).std(0, correction=0), 1.0, atol=1e-5)
    here, there = task.training_env(5), cloudpickle.loads(cloudpickle.dumps(task.worker_env(1)))()
    there.set_seed(5)
    torch.manual_seed(0)
    expected = here.rollout(30, break_when_any_done=False)
    torch.manual_seed(0)
    found = there.rollout(30, break_when_any_done=False)
    assert expected["next", "done"].any()
    assert (found == expected).all()
    assert task.worker_env(2)().batch_size == (2,)


@pytest.fixture
def start():
    """Start a run with workers, in a process group that does not outlive the test."""
    started = []

    def start(directory, workers=1):
        flags = ["--config", str(start_config(directory)), "--run-dir", str(directory)]
        flags += ["--collect.workers", str(workers), "--total-frames", "10000000"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(
            subprocess.Popen([sys.executable, str(RECIPE), *flags], start_new_session=True, **pipes)
        )
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def wait_for_rows(directory, rows, process):
    path = directory / "metrics.csv"
    for _ in range(6000):
        if path.is_file() and path.read_text().count("\n") > rows:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError(f"{rows} rows were not reached in 300 s")


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(pid):
    return [c for c in children(pid) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def gone(pids, seconds=20):
    for _ in range(seconds * 10):
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not left:
            return True
        time.sleep(0.1)
    return False


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes through /proc")


@pytest.mark.slow
def test_ctrl_c_to_the_whole_group_saves_and_the_run_goes_on(tmp_path, start):
    directory = tmp_path / "run"
    process = start(directory)
    wait_for_rows(directory, 3, process)
    workers = workers_of(process.pid)
    assert len(workers) == 1
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert gone(workers)
    stopped_at = int(read_metrics(directory / "metrics.csv")["frames"][-1])
    config = load_config(sac_lag.Config, directory)
    assert config.collect.workers == 1
    sac_lag.main(with_run(config, total_frames=stopped_at + 400))
    rows = read_metrics(directory / "metrics.csv")
    assert rows["frames"].tolist() == list(range(600, stopped_at + 401, 200))
    assert np.diff(rows["updates"]).tolist() == [4.0] * (len(rows["updates"]) - 1)


@pytest.mark.slow
def test_one_ctrl_c_ends_a_run_whose_worker_is_frozen(tmp_path, start):
    directory = tmp_path / "run"
    process = start(directory, workers=2)
    wait_for_rows(directory, 3, process)
    workers = workers_of(process.pid)
    os.kill(workers[0], signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "a worker did not deliver its steps, which are given up" in output
    assert "Traceback" not in output
    assert gone(workers)
    reached = int(read_metrics(directory / "metrics.csv")["frames"][-1])
    newest = max((directory / "checkpoint").glob("checkpoint-*"))
    assert int(newest.name.split("-")[1]) in {reached, reached + 200}  # a batch may have come without a row


@pytest.mark.slow
def test_a_dead_worker_ends_the_run_with_one_line_and_keeps_the_checkpoint(tmp_path, start):
    directory = tmp_path / "run"
    process = start(directory, workers=2)
    wait_for_rows(directory, 3, process)
    workers = workers_of(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: " in output
    assert "has died" in output.splitlines()[-1]
    assert "the last checkpoint is kept" in output
    assert any((directory / "checkpoint").glob("checkpoint-*"))
    assert gone(workers)


@pytest.mark.slow
def test_workers_of_a_killed_run_end_too(tmp_path, start):
    process = start(tmp_path / "run")
    wait_for_rows(tmp_path / "run", 1, process)
    workers = workers_of(process.pid)
    process.kill()
    process.communicate()
    assert gone(workers)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--collect.workers", "-1"], "collect.workers is -1, must be at least 0"),
        (["--collect.workers", "3"], "collect.workers is 3, must be 0 or divide env.num_envs 4"),
        (["--collect.workers", "2", "--env.num-workers", "2"], "leave env.num_workers at 1"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, flags, said):
    arguments = ["--env.id", "PointCircle", "--env.num-envs", "4", "--run-dir", str(tmp_path / "run"), *flags]
    with pytest.raises(SystemExit, match=said):
        sac_lag.launch(sac_lag.main, sac_lag.Config, arguments)
    assert not (tmp_path / "run").exists()
