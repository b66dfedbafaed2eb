"""Run directories: made, continued, interrupted, refused."""

import shutil
import signal
import threading
import time
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import yaml

from safe_components.training import (
    CheckpointError,
    EnvConfig,
    RecipeConfig,
    Run,
    RunConfig,
    StopRequest,
    launch,
    load_config,
    parse_config,
    read_metrics,
)
from safe_components.training.options import BudgetConfig


def make_config(directory, *, env=EnvConfig(id="PointCircle"), cost_limit=(25.0,), **changes):  # noqa: B008
    settings = {"run_dir": directory, "total_frames": 100, "loggers": (), "progress": False} | changes
    return RecipeConfig(env=env, budget=BudgetConfig(cost_limit=cost_limit), run=RunConfig(**settings))


def train(config, model, frames, fail_at=None):
    optimizer = torch.optim.Adam(model.parameters())
    with Run(config, model=model, optimizer=optimizer) as run:
        while not run.finished and run.frames < frames:
            if fail_at is not None and run.frames >= fail_at:
                raise FloatingPointError("'loss' holds 1 non-finite value")
            optimizer.zero_grad()
            model(torch.rand(4, 2)).sum().backward()
            optimizer.step()
            run.advance(10)
            run.log({"episode_reward": 1.0, "episode_cost": 0.0})
            if run.due(20, run.frames - 10):
                run.save()
    return run


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    torch.manual_seed(0)
    whole = torch.nn.Linear(2, 1)
    start = {key: value.clone() for key, value in whole.state_dict().items()}
    torch.manual_seed(1)
    train(make_config(tmp_path / "whole"), whole, 100)

    first = torch.nn.Linear(2, 1)
    first.load_state_dict(start)
    torch.manual_seed(1)
    train(make_config(tmp_path / "split"), first, 50)
    torch.manual_seed(99)  # the checkpoint brings its own random state
    second = torch.nn.Linear(2, 1)
    resumed = load_config(RecipeConfig, tmp_path / "split")
    run = train(resumed, second, 100)
    assert run.frames == 100
    # Bit for bit: parameters, Adam's moments and the random inputs all continued.
    assert torch.equal(whole.weight, second.weight)
    rows = read_metrics(tmp_path / "split" / "metrics.csv")
    assert rows["frames"].tolist() == list(range(10, 101, 10))
    assert (rows["wall_seconds"][1:] > rows["wall_seconds"][:-1]).all()


def test_the_row_of_a_stop_is_taken_back_only_if_the_run_goes_on(tmp_path, capsys):
    def train_to(total, **place):
        config = make_config(**{"directory": tmp_path / "run", "total_frames": total, **place})
        with Run(config) as run:
            while not run.finished:
                run.advance(10)
                run.log({"episode_reward": 1.0, "episode_cost": 0.0}, extra=run.frames == total)
        return read_metrics(tmp_path / "run" / "metrics.csv")["frames"].tolist(), capsys.readouterr().out

    assert train_to(30)[0] == [10, 20, 30]
    resume = {"resume": tmp_path / "run"}
    assert train_to(30, **resume) == ([10, 20, 30], "")  # nothing is left to do
    frames, said = train_to(50, **resume)
    assert frames == [10, 20, 40, 50]
    assert said.endswith("is taken back: it was only written because the run stopped at frame 30\n")


def test_an_error_keeps_the_last_good_checkpoint(tmp_path, capsys):
    with pytest.raises(FloatingPointError):
        train(make_config(tmp_path / "run"), torch.nn.Linear(2, 1), 100, fail_at=50)
    assert sorted(path.name[-2:] for path in (tmp_path / "run" / "checkpoint").iterdir()) == ["20", "40"]
    assert "the last checkpoint is kept" in capsys.readouterr().out
    assert (tmp_path / "run" / "curves.png").is_file()


def test_ctrl_c_saves_and_stops(tmp_path):
    config = make_config(tmp_path / "run", total_frames=1000)
    handler = signal.getsignal(signal.SIGINT)
    with Run(config, model=torch.nn.Linear(1, 1)) as run:
        while not run.finished:
            run.advance(10)
            run.log({"episode_reward": 1.0, "episode_cost": 0.0})
            if run.frames == 30:
                signal.raise_signal(signal.SIGINT)
    assert run.frames == 30
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] != []
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    def press_twice():
        with Run(make_config(tmp_path / "run")) as run:
            signal.raise_signal(signal.SIGINT)
            assert run.finished
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        press_twice()


def test_config_yaml_holds_settings_and_versions(tmp_path):
    config = make_config(tmp_path / "run", cost_limit=(12.5,), env=EnvConfig(id="PointCircle", num_envs=3))
    train(config, torch.nn.Linear(2, 1), 10)
    document = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert document["config"]["env"]["num_envs"] == 3
    assert document["versions"]["mujoco"][0].isdigit()
    loaded = load_config(RecipeConfig, tmp_path / "run")
    assert loaded.env == config.env
    assert loaded.budget == config.budget


def test_a_directory_in_use_is_refused(tmp_path):
    train(make_config(tmp_path / "run"), torch.nn.Linear(2, 1), 10)
    with pytest.raises(FileExistsError, match="--resume"):
        Run(make_config(tmp_path / "run"))


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_directory_that_is_a_file_or_below_one_is_refused(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=rf"cannot be \S*/{place}: \S*/file is a file"):
        Run(make_config(tmp_path / place))
    assert (tmp_path / "file").read_text() == "mine"


def test_runs_that_start_in_one_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
    config = make_config(None, env=EnvConfig(id="mod:My/Task-v0"), seed=3)
    for rows in (1, 2, 3):
        with Run(config) as run:
            for _ in range(rows):
                run.advance(10)
                run.log({"episode_reward": 1.0, "episode_cost": 0.0})
    # No slash or colon of the environment's name makes a folder, or a name some systems refuse.
    names = [f"recipe-mod-My-Task-v0-seed3-20260102-030405{suffix}" for suffix in ("", "-2", "-3")]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
    for rows, name in enumerate(names, start=1):
        assert len(read_metrics(tmp_path / "runs" / name / "metrics.csv")["frames"]) == rows
        assert (tmp_path / "runs" / name / "config.yaml").is_file()


@pytest.mark.parametrize("exists", [False, True])
def test_of_runs_that_ask_for_one_directory_at_once_one_gets_it(exists, tmp_path):
    directory, together, outcomes = tmp_path / "some" / "run", threading.Barrier(8), []
    if exists:
        directory.mkdir(parents=True)

    def start():
        together.wait()
        try:
            outcomes.append(Run(make_config(directory)))
        except FileExistsError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run,) = (outcome for outcome in outcomes if isinstance(outcome, Run))
    refusals = [outcome for outcome in outcomes if outcome is not run]
    assert len(refusals) == 7
    assert all("already holds a run; continue it with --resume" in refusal for refusal in refusals)
    with run:
        run.advance(10)
        run.log({"episode_reward": 1.0, "episode_cost": 0.0})
    assert read_metrics(directory / "metrics.csv")["frames"].tolist() == [10]
    assert load_config(RecipeConfig, directory).run.run_dir == directory


@pytest.mark.parametrize("explicit", [False, True])
def test_a_run_that_could_not_start_leaves_none_behind(explicit, tmp_path, monkeypatch):
    def broken(*_):
        raise ImportError("no module named wandb")

    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path / "runs" / "mine" if explicit else None, loggers=("tensorboard", "wandb"))
    with monkeypatch.context() as patch:
        patch.setattr("safe_components.training.metrics.get_logger", broken)
        with pytest.raises(ImportError, match=r"safe_components\[tensorboard\]"):
            Run(config)
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_was_there_before_a_failed_start_stays(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr("safe_components.training.run.MetricsWriter", None)
        with pytest.raises(TypeError):
            Run(make_config(directory))
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]
    train(make_config(directory), torch.nn.Linear(2, 1), 10)
    with pytest.raises(FileExistsError):
        Run(make_config(directory))
    assert (directory / "config.yaml").is_file()  # a refusal takes nothing away


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(make_config(tmp_path / "run"), torch.nn.Linear(2, 1), 10)
    with pytest.raises(CheckpointError, match="model"):
        train(load_config(RecipeConfig, tmp_path / "run"), torch.nn.Linear(3, 1), 20)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--total-frames", "0"], "total_frames is 0"),
        (["--cost-limit", "-1"], "cost_limit is -1"),
        (["--cost-limit", "inf"], "cost_limit is inf"),
        (["--env.num-envs", "0"], r"env\.num_envs is 0"),
        (["--eval-episodes", "0"], "eval_episodes is 0"),
        (["--resume", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_bad_settings_end_in_one_line(flags, said):
    with pytest.raises(SystemExit, match=said):
        parse_config(RecipeConfig, flags)


def test_resuming_takes_the_saved_settings_and_refuses_others(tmp_path):
    train(make_config(tmp_path / "run", seed=7), torch.nn.Linear(2, 1), 10)
    directory = str(tmp_path / "run")
    config = parse_config(RecipeConfig, ["--resume", directory, "--total-frames", "500"])
    assert (config.run.seed, config.run.total_frames, config.run.run_dir) == (7, 500, tmp_path / "run")
    with pytest.raises(SystemExit, match="seed: saved 7, now 8"):
        parse_config(RecipeConfig, [f"--resume={directory}", "--seed", "8"])


def test_errors_of_a_recipe_are_one_line_unless_asked_for(tmp_path):
    def main(config):
        raise ValueError("epsilon is -1, must be positive")

    with pytest.raises(SystemExit, match=r"^error: epsilon is -1"):
        launch(main, RecipeConfig, [])
    with pytest.raises(ValueError, match="epsilon"):
        launch(main, RecipeConfig, ["--traceback"])


def test_a_warm_start_needs_a_checkpoint_and_the_parts_that_take_it(tmp_path):
    with Run(make_config(tmp_path / "empty")):
        pass
    shutil.rmtree(tmp_path / "empty" / "checkpoint")
    train(make_config(tmp_path / "first"), torch.nn.Linear(2, 1), 20)
    for start, error, said in [
        ("nowhere", FileNotFoundError, "nowhere is not a run directory, it holds no config.yaml"),
        ("empty", FileNotFoundError, "warm_start: .*empty holds no checkpoint"),
        ("first", ValueError, r"warm_start needs Run\(\.\.\., norm=\.\.\., learner=\.\.\.\)"),
    ]:
        with pytest.raises(error, match=said):
            Run(make_config(tmp_path / "run", warm_start=tmp_path / start), policy=torch.nn.Linear(2, 1))
        assert not (tmp_path / "run").exists()


def test_an_error_while_the_environments_close_is_told_like_one_before(tmp_path, capsys):
    def fail():
        raise RuntimeError("the simulator does not close")

    def finish():
        with Run(make_config(tmp_path / "run")) as run:
            run.on_exit(fail)
            run.advance(10)

    with pytest.raises(RuntimeError, match="does not close"):
        finish()
    assert "stopped by RuntimeError at 10 frames" in capsys.readouterr().out
    with Run(make_config(None, resume=tmp_path / "run")) as run:  # the lock is free
        assert run.frames == 10


@pytest.mark.parametrize("failed", [False, True])
def test_curves_that_cannot_be_drawn_do_not_hide_the_first_error(failed, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left for the picture")

    monkeypatch.setattr("safe_components.training.run.plot_curves", fail)
    with pytest.raises(
        FloatingPointError if failed else OSError, match="non-finite" if failed else "no space"
    ):
        train(make_config(tmp_path / "run"), torch.nn.Linear(2, 1), 40, fail_at=20 if failed else None)
    assert (tmp_path / "run" / "checkpoint" / "checkpoint-000000000020").is_dir()


def test_a_package_that_is_missing_is_recorded_as_such(tmp_path, monkeypatch):
    def version(package):
        if package == "safety-gymnasium":
            raise PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr("safe_components.training.run.version", version)
    train(make_config(tmp_path / "run"), torch.nn.Linear(2, 1), 10)
    versions = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["versions"]
    assert versions["safety-gymnasium"] == "not installed"
    assert versions["torch"] == "1.2.3"


def test_signals_are_left_alone_outside_the_main_thread():
    before, seen = signal.getsignal(signal.SIGINT), []

    def look():
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGINT) is before, bool(stop)])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [True, False]
