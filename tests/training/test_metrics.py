"""The rows of metrics: always whole, continued without repetition, drawn with the limit."""

import math

import matplotlib.image
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from safe_components.training import (
    Averages,
    EpisodeStatistics,
    MetricsWriter,
    episode_summary,
    plot_curves,
    read_metrics,
    require_finite,
    with_gaps,
)


def test_rows_are_readable_after_each_write(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write({"frames": 10, "episode_reward": 1.5})
    assert read_metrics(tmp_path / "metrics.csv")["episode_reward"].tolist() == [1.5]
    writer.write({"frames": 20, "episode_reward": math.nan})
    assert np.isnan(read_metrics(tmp_path / "metrics.csv")["episode_reward"][1])
    writer.close()


def test_a_new_column_leaves_earlier_cells_empty(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write({"frames": 10})
    writer.write({"frames": 20, "eta": 3.0})
    writer.write({"frames": 30})
    writer.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["frames,eta", "10,", "20,3", "30,"]


def test_a_resumed_file_drops_rows_after_the_checkpoint_and_a_torn_last_row(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("frames,reward\n10,1\n20,2\n30,3\n4")
    writer = MetricsWriter(tmp_path, keep_until=20)
    writer.write({"frames": 30, "reward": 4.0})
    writer.close()
    assert path.read_text().split() == ["frames,reward", "10,1", "20,2", "30,4"]


def test_tensorboard_holds_what_the_csv_holds(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, loggers=("tensorboard",))
    writer.write({"frames": 10, "reward": 2.5, "empty": math.nan})
    writer.close()
    (event_file,) = (tmp_path / "tensorboard").rglob("events*")
    events = EventAccumulator(str(event_file.parent)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(10, 2.5)]
    assert "empty" not in events.Tags()["scalars"]


def test_a_missing_logger_names_its_extra(tmp_path, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("wandb could not be imported")

    monkeypatch.setattr("safe_components.training.metrics.get_logger", missing)
    with pytest.raises(ImportError, match=r"pip install 'safe_components\[wandb\]'"):
        MetricsWriter(tmp_path, loggers=("wandb",))


def test_averages_weigh_each_call_once():
    averages = Averages()
    averages.add({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor(1)})
    averages.add({"a": torch.tensor([5.0, 4.0])})
    assert averages.pop() == {"a": 3.0, "a_1": 3.5, "b": 1.0}
    assert averages.pop() == {}


def test_several_costs_keep_their_names():
    averages = Averages(["_walls", "_speed"])
    averages.add({"lambda": torch.tensor([1.0, 3.0]), "eta": torch.tensor(1), "other": torch.ones(3)})
    other = {"other": 1.0, "other_1": 1.0, "other_2": 1.0}
    assert averages.pop() == {"lambda_walls": 1.0, "lambda_speed": 3.0, "eta": 1.0, **other}
    ended = {"reward": torch.ones(1), "cost": torch.tensor([[2.0, 3.0]]), "length": torch.ones(1)}
    summary = episode_summary(ended, [9.0, 9.0], "eval", ["_walls", "_speed"])
    assert (summary["eval_cost_walls"], summary["eval_cost_speed"]) == (2.0, 3.0)


def _batch(done, reward, cost, length):
    done = torch.tensor(done)[..., None]
    inside = {
        "done": done,
        "episode_reward": torch.tensor(reward)[..., None],
        "episode_cost": torch.tensor(cost),
        "step_count": torch.tensor(length)[..., None],
    }
    return TensorDict({"next": TensorDict(inside, done.shape[:-1])}, done.shape[:-1])


def test_only_ended_episodes_count():
    statistics = EpisodeStatistics([25.0, 1.0])
    statistics.add(
        _batch(
            [[False, True], [True, False]],
            [[1.0, 2.0], [4.0, 9.0]],
            [[[9.0, 9.0], [10.0, 0.5]], [[30.0, 0.0], [9.0, 9.0]]],
            [[6, 7], [4, 1]],
        )
    )
    assert statistics.pop() == {
        "episode_reward": 3.0,
        "episode_cost": 20.0,
        "episode_cost_1": 0.25,
        "episode_violation_rate": 0.5,
        "episode_length": 5.5,
        "episodes": 2.0,
    }
    empty = statistics.pop()
    assert empty["episodes"] == 0
    assert math.isnan(empty["episode_reward"])


def test_a_cost_at_the_limit_is_no_violation():
    ended = {"reward": torch.ones(2), "cost": torch.tensor([[25.0], [25.1]]), "length": torch.ones(2)}
    summary = episode_summary(ended, [25.0], "eval")
    assert summary["eval_violation_rate"] == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_key_and_its_step_are_named(bad):
    values = TensorDict(
        {"observation": torch.zeros(3), "next": {"reward": torch.tensor([0.0, bad, bad])}}, []
    )
    with pytest.raises(
        FloatingPointError, match=r"\('next', 'reward'\).* 2 non-finite values of 3 at frame 70"
    ):
        require_finite(values, "frame 70")
    with pytest.raises(FloatingPointError, match="'loss' holds 1"):
        require_finite({"eta": 1.0, "loss": bad}, "frame 1")


def test_a_finite_sum_that_overflows_is_no_error():
    require_finite(TensorDict({"q": torch.full((4,), 3e38)}, []), "frame 0")


@pytest.mark.parametrize(
    ("frames", "values", "gaps"),
    [
        ([1, 2, 3, 4, 5], [7, 7, math.nan, 7, 7], [3]),  # no number in a row
        ([1, 2, 5, 6, 7], [7, 7, 7, 7, 7], [3.5]),  # rows are missing
        ([1, 2, 3, 4, 5, 6, 7], [math.nan, 7] * 3 + [math.nan], []),  # evaluated in every other row
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [7, math.nan, 7, math.nan, math.nan, math.nan, 7, math.nan, 7], [5]),
        ([1, 2, 3, 3.2], [7, 7, 7, 7], []),  # the last one comes early
        ([1, 9], [7, 7], []),
        ([1], [math.nan], []),
        ([], [], []),
    ],
)
def test_a_curve_has_gaps_where_points_are_missing(frames, values, gaps):
    x, y = with_gaps(np.array(frames, float), np.array(values, float))
    assert x[np.isnan(y)].tolist() == gaps
    there = np.isfinite(np.array(values, float))
    assert x[~np.isnan(y)].tolist() == np.array(frames, float)[there].tolist()
    assert (np.diff(x) > 0).all()


def test_tensorboard_gets_hyperparameters_beside_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, loggers=("tensorboard",))
    writer.log_config({"policy": {"lr": 0.25, "hidden_sizes": [8, 8]}, "budget": {"start": None}})
    writer.write({"frames": 10, "eta": 2.0})
    writer.close()
    (directory,) = {path.parent for path in (tmp_path / "tensorboard").rglob("events*")}
    events = EventAccumulator(str(directory)).Reload()
    assert events.Tags()["scalars"] == ["frames", "eta"]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for part in (b"policy.lr", b"policy.hidden_sizes", b"[8, 8]", b"budget.start", b"None"):
        assert part in content


def test_wandb_gets_the_configuration(tmp_path, monkeypatch):
    told = []

    class Logger:
        experiment = None
        log_hparams = told.append

    monkeypatch.setattr("safe_components.training.metrics.get_logger", lambda *_: Logger)
    config = {"policy": {"lr": 0.25}}
    writer = MetricsWriter(tmp_path, loggers=("wandb",))
    writer.log_config(config)
    writer.close()
    assert told == [config]


def test_whole_numbers_are_written_in_full(tmp_path):
    writer = MetricsWriter(tmp_path, file_name="episodes.csv")
    writer.write({"frames": 1_234_567_891, "reward": 0.1})
    writer.close()
    assert (tmp_path / "episodes.csv").read_text() == "frames,reward\n1234567891,0.1\n"


def test_the_picture_holds_one_panel_a_signal(tmp_path):
    for name in ("a", "b"):
        directory = tmp_path / name
        directory.mkdir()
        writer = MetricsWriter(directory)
        for frames in (10, 20):
            writer.write(
                {
                    "frames": frames,
                    "episode_reward": 1.0,
                    "episode_cost": 3.0,
                    "episode_cost_1": 1.0,
                    "eval_reward": 1.0,
                    "eval_cost": 2.0,
                }
            )
        writer.close()
    runs = {name: read_metrics(tmp_path / name / "metrics.csv") for name in ("a", "b")}
    plot_curves({"a": runs["a"]}, [25.0], tmp_path / "one.png")
    plot_curves(runs, [25.0, 1.0], tmp_path / "two.png")
    one, two = (matplotlib.image.imread(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.shape[1] > one.shape[1] > one.shape[0]
    assert one[..., :3].std() > 0.01
