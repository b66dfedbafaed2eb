"""A study in one process: which variants share a batch, what is refused, and the same files as ever."""

import dataclasses
import signal

import pytest

import study
from safe_components.studies import batches_of, plan, run_batches
from safe_components.studies.member_process import finished
from safe_components.training import Loop, Run, StopRequest, memory, overlay, read_metrics

COMMON = (
    "--env.id PointCircle --env.num-envs 4 --env.frame-skip 1 --env.max-episode-steps 50 --log-interval 200 "
    "--eval-interval 400 --eval-episodes 2 --checkpoint-interval 400 --loggers --no-progress --set "
    "policy.hidden-sizes=16 critics.hidden-sizes=16 estep.num-particles=4 replay.batch-size=32 "
    "replay.size=4000 collect.updates-per-frame=0.02 collect.warmup-frames=400 collect.frames-per-batch=200 "
    "critics.warmup-updates=5 mstep.iterations=1"
).split()
VARIANTS = ["--variants", "cvpo", "cvpo:estep.epsilon=0.2", "soft-kl", "--seeds", "2"]


def planned(tmp_path, *variants, changes=None):
    shared = {"env": {"id": "PointCircle"}}
    return plan(variants, range(2), tmp_path, shared=shared, changes=changes)


def test_variants_that_differ_in_numbers_share_a_batch(tmp_path):
    numbers = [
        "cvpo",
        "cvpo:estep.epsilon=0.2,policy.lr=0.01",
        "limit-decay",
        "cvpo:trust-region.kl-mean=0.1",
    ]
    groups = batches_of(planned(tmp_path, *numbers, "soft-kl", "dual", "dual:multiplier.max=2", "pid"))
    assert [sorted({m.label for m in group}) for group in groups] == [
        sorted(numbers),
        ["soft-kl"],
        ["dual"],
        ["dual:multiplier.max=2"],
        ["pid"],
    ]
    assert all(len(group) == 2 * len({m.label for m in group}) for group in groups)


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("sac-lag", r"sac_lag\.py makes its updates itself; cvpo\.py can be batched"),
        ("cvpo:execution.mode=compile", "execution.mode is compile, must be eager or graph"),
        ("cvpo:collect.workers=2", "collect.workers is 2, must be 0"),
        ("cvpo:policy=own_parts:mixture_policy", "policy is own, must be gaussian or tanh"),
    ],
)
def test_what_cannot_be_batched_is_refused_in_one_line(tmp_path, variant, said):
    with pytest.raises(ValueError, match=f"^variant {variant} cannot be trained with --batched: {said}$"):
        batches_of(planned(tmp_path, variant))


def test_other_ways_to_run_members_exclude_a_batch(tmp_path):
    with pytest.raises(SystemExit, match="--batched trains all runs in this process: leave out --jobs"):
        study.run([*COMMON, *VARIANTS, "--batched", "--jobs", "2", "--run-dir", str(tmp_path / "study")])
    assert not (tmp_path / "study").exists()


def test_a_device_without_memory_for_the_batch_is_said_before_training(tmp_path, monkeypatch):
    members = planned(tmp_path, "cvpo", "cvpo:estep.epsilon=0.2")
    needed = []
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**6)
    for count in (2, 4):
        with pytest.raises(
            ValueError, match=f"{count} runs as one batch need .* bytes .* 1,000,000 are free"
        ) as e:
            run_batches([members[:count]], progress=False)
        needed.append(int(str(e.value).split("need ")[1].split(" bytes")[0].replace(",", "")))
    assert needed[1] == 2 * needed[0]
    assert not any(member.directory.exists() for member in members)


def test_a_request_to_stop_reaches_every_run_of_the_process():
    with StopRequest() as outer, StopRequest() as one, StopRequest() as other:
        signal.raise_signal(signal.SIGTERM)
        assert outer
        assert one
        assert other
    with StopRequest() as later:
        assert not later


@pytest.mark.slow
def test_a_batched_study_writes_the_files_and_numbers_of_an_ordinary_one(tmp_path):
    for name, flags, frames in (
        ("batched", ["--batched"], 800),
        ("batched", ["--batched"], 1200),  # the same command with more frames continues every member
        ("single", ["--jobs", "1"], 1200),
    ):
        study.run(
            [*COMMON, *VARIANTS, *flags, "--total-frames", str(frames), "--run-dir", str(tmp_path / name)]
        )
    for place in sorted((tmp_path / "single").glob("*/seed-*")):
        twin = tmp_path / "batched" / place.relative_to(tmp_path / "single")
        assert finished(twin, 1200)
        rows, expected = read_metrics(twin / "metrics.csv"), read_metrics(place / "metrics.csv")
        assert rows.keys() == expected.keys()
        for column, values in expected.items():
            if not column.startswith(("seconds_", "wall_seconds", "frames_per_second")):
                assert rows[column] == pytest.approx(values, rel=1e-3, abs=1e-4, nan_ok=True), (twin, column)
    assert sorted(p.name for p in (tmp_path / "batched").iterdir()) == sorted(
        p.name for p in (tmp_path / "single").iterdir()
    )


def small_members(tmp_path, seeds):
    small = {
        "env": {"num_envs": 4, "frame_skip": 1, "max_episode_steps": 50},
        "run": {"total_frames": 1000, "log_interval": 200, "eval_interval": 0, "loggers": []},
        "collect": {"frames_per_batch": 200, "warmup_frames": 400, "updates_per_frame": 0.01},
        "policy": {"hidden_sizes": [8]},
        "critics": {"hidden_sizes": [8]},
        "replay": {"size": 2000, "batch_size": 16},
        "estep": {"num_particles": 4},
    }
    return [
        dataclasses.replace(m, config=overlay(m.config, small, "small"))
        for seed in range(seeds)
        for m in plan(["cvpo"], [seed], tmp_path, shared={"env": {"id": "PointCircle"}})
    ]


def test_a_member_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    members = small_members(tmp_path, 3)
    (members[2].directory / "checkpoint" / "checkpoint-5").mkdir(
        parents=True
    )  # nothing that could be resumed
    report = Loop.report

    def failing(self, **shown):
        if self.run.config.run.seed == 1 and self.run.frames == 800:
            raise FloatingPointError("the critic diverges")
        report(self, **shown)

    monkeypatch.setattr(Loop, "report", failing)
    monkeypatch.setattr(Run, "draw", lambda self: None)  # it takes longer than the training
    outcome = run_batches(batches_of(members), progress=False)
    assert (outcome.finished, outcome.failed) == (members[:1], members[1:])
    assert read_metrics(members[0].directory / "metrics.csv")["frames"].tolist() == [600, 800, 1000]
    logs = [member.log.read_text() for member in members]
    assert "error" not in logs[0]
    assert "stopped by FloatingPointError at 800 frames" in logs[1]
    assert logs[1].endswith("error: the critic diverges\n")
    assert logs[2].startswith("error: ")


@pytest.mark.slow
def test_a_batch_that_is_stopped_saves_every_run_and_continues(tmp_path, monkeypatch):
    members = small_members(tmp_path, 2)
    report = Loop.report

    def stopping(self, **shown):
        if self.run.config.run.seed == 0 and self.run.frames == 800:
            signal.raise_signal(signal.SIGINT)
        report(self, **shown)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "report", stopping)
        outcome = run_batches(batches_of(members), progress=False)
    assert outcome.stopped == members
    assert all(any((m.directory / "checkpoint").glob("checkpoint-*")) for m in members)
    assert run_batches(batches_of(members), progress=False).finished == members
    for member in members:
        assert read_metrics(member.directory / "metrics.csv")["frames"].tolist() == [600, 800, 1000]
