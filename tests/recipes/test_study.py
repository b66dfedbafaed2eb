"""The study command: real runs, killed, continued, refused and reported."""

import csv
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import yaml
from pretended_runs import killed_at, wait_until

import study
from safe_components.studies import Outcome, hold
from safe_components.studies.member_process import finished, frames_reached
from safe_components.training import read_metrics

COMMON = (
    "--env.id PointCircle --env.num-envs 4 --env.frame-skip 1 --env.max-episode-steps 50 --log-interval 200 "
    "--eval-interval 400 --eval-episodes 2 --checkpoint-interval 400 --loggers --no-progress"
).split()
SMALL = (
    "estep.num-particles=4 replay.batch-size=32 replay.size=4000 collect.updates-per-frame=0.02 "
    "collect.warmup-frames=400 collect.frames-per-batch=200 critics.warmup-updates=5 mstep.iterations=1"
).split()
SMALL = ["--set", "policy.hidden-sizes=16 16", "critics.hidden-sizes=16 16", *SMALL]


def launch(directory, *flags):
    study.run([*COMMON, "--run-dir", str(directory), *flags])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_killed_study_repeats_nothing_that_had_finished(tmp_path):
    directory = tmp_path / "study"
    flags = [*SMALL, "--variants", "cvpo", "no-kl", "--seeds", "1", "--jobs", "1", "--total-frames", "2400"]
    command = [sys.executable, study.__file__, *COMMON, "--run-dir", str(directory), *flags]
    first, second = directory / "cvpo" / "seed-0", directory / "no-kl" / "seed-0"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: frames_reached(second) >= 600 or process.poll() is not None)
        process.kill()
    assert finished(first, 2400)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    launch(directory, *flags)
    assert before == {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    # The orphan saved and left: the run went on from there, and no row is there twice.
    assert finished(second, 2400)
    assert read_metrics(second / "metrics.csv")["frames"].tolist() == list(range(600, 2401, 200))
    assert "stopping after this iteration" in (second / "output.log").read_text()

    table = rows(directory / "table.csv")
    assert [(row["variant"], row["finished"]) for row in table] == [("cvpo", "1"), ("no-kl", "1")]
    run = read_metrics(first / "metrics.csv")
    late = run["frames"] > 2160
    expected = np.average(run["episode_reward"][late], weights=run["episodes"][late])
    assert float(table[0]["reward"]) == pytest.approx(expected, rel=1e-6)  # eight digits are written
    assert table[0]["reward_low"] == ""
    page = (directory / "table.md").read_text()
    assert matplotlib.image.imread(directory / "curves.png")[..., :3].std() > 0.01

    # The same directory for another study is refused; a report needs no run.
    for changed, said in [
        (["--cost-limit", "9"], r"cost_limit: there \[25.0\], now \[9.0\]"),
        (["--env.num-envs", "2"], "env.num_envs: there 4, now 2"),
    ]:
        with pytest.raises(SystemExit, match=f"holds another study .*{said}"):
            launch(directory, *flags, *changed)
    (directory / "table.md").unlink()
    launch(directory, "--report")
    assert (directory / "table.md").read_text() == page

    # More frames and other loggers: what had finished goes on, with the settings it was started with.
    more = [*flags[:-1], "2600", "--loggers", "tensorboard"]
    launch(directory, *more)
    assert read_metrics(first / "metrics.csv")["frames"].tolist() == list(range(600, 2601, 200))
    assert (first / "tensorboard").is_dir()
    saved = yaml.safe_load((first / "config.yaml").read_text())
    assert saved["config"]["run"]["total_frames"] == 2400
    assert saved["config"]["estep"]["num_particles"] == 4


@pytest.mark.slow
def test_a_lost_member_is_told_and_the_same_command_does_it(tmp_path, capsys):
    directory = tmp_path / "study"
    flags = [*SMALL, "--variants", "cvpo", "--seeds", "2", "--jobs", "2", "--total-frames", "1400"]
    lost, kept = (directory / "cvpo" / f"seed-{seed}" for seed in (0, 1))
    with killed_at(800, lost), pytest.raises(SystemExit, match=r"^error: 1 of 2 members failed") as stop:
        launch(directory, *flags)
    assert "the same command continues the study" in str(stop.value)
    assert "cvpo/seed-0 FAILED: error: the process was killed by signal 9" in capsys.readouterr().out
    assert finished(kept, 1400)
    assert not finished(lost, 1400)
    (row,) = rows(directory / "table.csv")
    assert (row["seeds"], row["finished"]) == ("2", "1")
    seeds = rows(directory / "seeds.csv")
    assert [row["finished"] for row in seeds] == ["False", "True"]
    assert 800 <= int(seeds[0]["frames"]) < 1400
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}

    launch(directory, *flags)
    assert "1 of 2 members had finished before" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    assert finished(lost, 1400)
    assert read_metrics(lost / "metrics.csv")["frames"].tolist() == list(range(600, 1401, 200))
    assert rows(directory / "table.csv")[0]["finished"] == "2"


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty and holds no study"):
        launch(tmp_path, *SMALL, "--variants", "cvpo")
    with pytest.raises(SystemExit, match="holds no study"):
        launch(tmp_path, "--report")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_processes_do_not_run_one_study(tmp_path):
    with (
        hold(tmp_path),
        pytest.raises(BlockingIOError, match="another process is running the study"),
        hold(tmp_path),
    ):
        pass


@pytest.mark.parametrize(("how", "status"), [("failed", "1 of 1 members failed"), ("stopped", "130")])
def test_a_study_that_is_not_complete_says_how_to_go_on(tmp_path, monkeypatch, capsys, how, status):
    monkeypatch.setattr(study, "run_members", lambda members, *_: Outcome(**{how: members}))
    with pytest.raises(SystemExit, match=status) as stop:
        launch(tmp_path / "study", *SMALL, "--variants", "cvpo", "--seeds", "1")
    printed = capsys.readouterr().out
    assert "| cvpo | 0 of 1 | 100,000 | – |" in printed
    assert "the same command continues" in printed + str(stop.value)
    assert (tmp_path / "study" / "table.md").is_file()


def test_the_directory_is_named_after_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text("all: {env: {id: Hopper-v5}, critics: {gamma: 0.9}}")
    for words, name in [
        ([], "study-SafetyPointCircle1-v0"),
        (["--env.id", "PointCircle"], "study-PointCircle"),
        (["--settings", "task.yaml"], "study-Hopper-v5"),
        (["--settings", "task.yaml", "--env.id", "PointCircle"], "study-PointCircle"),
    ]:
        with pytest.raises(SystemExit, match=f"runs/{name} holds no study"):
            study.run([*words, "--report"])
