"""The stop-watch: every moment in one phase; a run's columns add up to its wall time."""

import contextlib
import time

import numpy as np
import pytest
import split

from safe_components.training import EnvConfig, RecipeConfig, Run, RunConfig, Stopwatch, read_metrics


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

        def pass_(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_nested_stretches_are_counted_once(clock):
    watch = Stopwatch("rest", "outer", "inner")
    clock.pass_(1)
    with watch("outer"):
        clock.pass_(2)
        with watch("inner"):
            clock.pass_(4)
        clock.pass_(8)
    clock.pass_(16)
    assert watch.pop() == {"rest": 17.0, "outer": 10.0, "inner": 4.0}
    assert watch.pop() == {"rest": 0.0, "outer": 0.0, "inner": 0.0}


def test_reading_inside_a_phase_splits_it(clock):
    watch = Stopwatch("rest", "a")
    with watch("a"):
        clock.pass_(1)
        assert watch.pop() == {"rest": 0.0, "a": 1.0}
        clock.pass_(2)
    assert watch.pop() == {"rest": 0.0, "a": 2.0}


def test_an_error_ends_its_phase(clock):
    watch = Stopwatch("rest", "a")
    with contextlib.suppress(KeyError), watch("a"):
        clock.pass_(1)
        raise KeyError
    clock.pass_(5)
    assert watch.pop() == {"rest": 5.0, "a": 1.0}


def test_waiting_for_items_is_apart_from_their_use(clock):
    def items():
        for item in range(3):
            clock.pass_(1)
            yield item
        clock.pass_(10)  # finding out that there is no more

    watch = Stopwatch("rest", "waiting")
    seen = []
    for item in watch.each("waiting", items()):
        seen.append(item)
        clock.pass_(100)
    assert seen == [0, 1, 2]
    assert watch.pop() == {"rest": 300.0, "waiting": 13.0}


def test_leaving_the_loop_early_leaves_the_phase(clock):
    watch = Stopwatch("rest", "waiting")
    for _ in watch.each("waiting", [1, 2]):
        break
    clock.pass_(3)
    assert watch.pop() == {"rest": 3.0, "waiting": 0.0}


def test_an_unknown_phase_is_named():
    with pytest.raises(
        ValueError, match=r"phase is 'colecting', must be one of \('learning', 'collecting'\)"
    ):
        Stopwatch("learning", "collecting")("colecting").__enter__()


def make_run(directory, **changes):
    settings = RunConfig(run_dir=directory, loggers=(), progress=False, **changes)
    return Run(RecipeConfig(env=EnvConfig(id="PointCircle"), run=settings))


def train(run, rows):
    with run:
        for _ in range(rows):
            with run.watch("collecting"):
                time.sleep(0.01)
            run.advance(10)
            run.log({"episode_reward": 1.0, "episode_cost": 0.0})
            run.save()


def test_the_columns_of_a_row_add_up_to_its_time_also_after_a_resume(tmp_path):
    directory = tmp_path / "run"
    train(make_run(directory), 4)
    train(make_run(directory, resume=directory), 3)
    rows = read_metrics(directory / "metrics.csv")
    assert rows["frames"].tolist() == list(range(10, 71, 10))
    times = [name for name in rows if name.startswith("seconds_")]
    assert sorted(times) == sorted(f"seconds_{phase}" for phase in split.PHASES)
    total = sum(rows[name] for name in times)
    passed = np.diff(rows["wall_seconds"], prepend=0.0)
    # The resumed run's clock goes on from the checkpoint, which was written after the last row.
    same_process = np.arange(7) != 4
    np.testing.assert_allclose(total[same_process], passed[same_process], atol=2e-3)
    assert (rows["seconds_collecting"] >= 0.01).all()
    assert rows["seconds_saving"][0] == rows["seconds_evaluating"].max() == 0  # saved after the row
    assert (rows["seconds_saving"][[1, 2, 3, 5, 6]] > 0).all()
    assert (rows["seconds_logging"][[1, 2, 3, 5, 6]] > 0).all()


def test_split_counts_the_last_checkpoint():
    rows = {
        "frames": np.array([100.0, 200.0, 300.0]),
        "wall_seconds": np.array([4.0, 8.0, 12.0]),
        "seconds_collecting": np.array([1.0, 1.0, 1.0]),
        "seconds_learning": np.array([3.0, 2.0, 0.5]),
        "seconds_evaluating": np.array([0.0, 0.0, 0.5]),
        "seconds_saving": np.array([0.0, 1.0, 1.0]),
        "seconds_logging": np.array([0.0, 0.0, 0.0]),
    }
    parts = split.split(rows)
    assert parts["seconds"] == 13.0  # two checkpoints of a second were seen, and a third ends the run
    assert parts["saving"] == 3 / 13
    assert parts["learning"] == 5.5 / 13
    assert parts["unsaid"] == 1 / 13
    with pytest.raises(ValueError, match="no seconds_"):
        split.split({"frames": rows["frames"]})
