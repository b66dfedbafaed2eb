"""The calls of a recipe's loop: what a batch of frames pays for, where random actions stop."""

import numpy as np
import pytest
import torch

from safe_components.critics import n_step_transitions
from safe_components.envs import PointCircle
from safe_components.envs.base import StateError
from safe_components.policies import gaussian_policy
from safe_components.training import (
    EnvConfig,
    Loop,
    RecipeConfig,
    Run,
    RunConfig,
    Task,
    read_metrics,
    validate,
)
from safe_components.training.options import CollectConfig, OffPolicyCollectConfig, OffPolicyConfig
from safe_components.training.replay import STORED


@pytest.fixture
def loop(tmp_path):
    """``loop(collect, **settings of the run)`` on four copies of PointCircle with episodes of 50 steps."""

    def make(collect, **settings):
        env = EnvConfig(id="PointCircle", num_envs=4, frame_skip=1, max_episode_steps=50)
        run = RunConfig(run_dir=tmp_path / "run", loggers=(), progress=False, **settings)
        config = RecipeConfig(env=env, run=run)
        task = Task(config)
        policy = gaussian_policy(4, **task.bounds, hidden_sizes=(8,))
        return Loop(Run(config, policy=policy), task, policy, collect)

    return make


@pytest.mark.parametrize("steps", [25, 50])
def test_the_first_windows_of_the_policy_are_its_own(loop, steps):
    looped = loop(CollectConfig(frames_per_batch=200, warmup_frames=4 * steps), total_frames=400)
    with looped.run:
        random = looped.warm_up()
        assert random.shape == (4, steps)
        assert looped.episode_costs.shape == (4 * (steps // 50), 1)  # those cut short are not counted
        first = next(looped.collect())
    transitions_of = n_step_transitions(3, 0.99)
    assert transitions_of(random.select(*STORED, "observation", ("next", "observation"))) is not None
    stored = transitions_of(first.select(*STORED, "observation", ("next", "observation"))).reshape(4, -1)
    # The last three random steps come out with the policy's first batch, and end where it begins.
    ends, reward = stored[:, :3], random["next", "reward"]
    torch.testing.assert_close(ends["next", "reward"][:, 2], reward[:, -1])
    torch.testing.assert_close(ends["next", "reward"][:, 1], reward[:, -2] + 0.99 * reward[:, -1])
    last = random["next", "observation"][:, -1:].expand(-1, 3, -1)
    assert torch.equal(ends["next", "observation"], last)
    assert not ends["next", "terminated"].any()  # still bootstrapped
    assert torch.equal(first["observation"][:, 0], stored["observation"][:, 3])


def test_updates_are_paid_for_by_frames_and_the_rest_is_owed(loop):
    looped = loop(OffPolicyCollectConfig(frames_per_batch=20, updates_per_frame=0.13), total_frames=100)
    counted = []
    with looped.run:
        for _ in looped.collect():
            counted.append(list(looped.updates_due()))
    # 2.6 updates a batch: 2, then 5.2 in all, 7.8, 10.4, 13.
    assert counted == [[1, 2], [3, 4, 5], [6, 7], [8, 9, 10], [11, 12, 13]]
    assert looped.run.updates == 13


PACES = [(1, None, 0.1), (4, None, 0.1), (8, None, 0.05), (8, 0.3, 0.3), (1, 0.0, 0.0)]


@pytest.mark.parametrize(("held", "set_to", "pace"), PACES)
def test_without_a_number_of_updates_it_follows_from_the_actions(held, set_to, pace):
    collect = OffPolicyCollectConfig(updates_per_frame=set_to)
    assert collect.pace(EnvConfig(frame_skip=held)) == pytest.approx(pace)


def test_an_evaluation_waits_for_the_next_row(loop):
    """An interval that is no multiple of the rows' loses no evaluation."""
    intervals = {"log_interval": 40, "eval_interval": 50, "eval_episodes": 2}
    looped = loop(CollectConfig(frames_per_batch=20), total_frames=160, **intervals)
    with looped.run as run:
        for _ in looped.collect():
            looped.report()
    rows = read_metrics(run.directory / "metrics.csv")
    assert rows["frames"].tolist() == [40, 80, 120, 160]
    assert np.isfinite(rows["eval_reward"]).tolist() == [False, True, True, True]


def test_a_report_is_due_after_each_interval_and_at_the_end(loop):
    intervals = {"log_interval": 40, "eval_interval": 80, "eval_episodes": 2, "checkpoint_interval": 40}
    looped = loop(CollectConfig(frames_per_batch=20), total_frames=100, **intervals)
    with looped.run as run:
        for _ in looped.collect():
            looped.record({"loss": torch.tensor(float(run.frames))})
            looped.report()
    lines = (run.directory / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    assert [row["frames"] for row in rows] == ["40", "80", "100"]
    assert [row["loss"] for row in rows] == ["30", "70", "100"]  # means since the last row
    assert [bool(row["eval_reward"]) for row in rows] == [False, True, True]
    assert len(list((run.directory / "checkpoint").iterdir())) == 2


@pytest.mark.parametrize(
    ("collect", "env", "said"),
    [
        ({"frames_per_batch": 1}, {}, r"frames_per_batch is 1, must be at least env\.frame_skip 8"),
        ({"workers": 3}, {"num_envs": 4}, "workers is 3, must be 0 or divide"),
        ({"workers": 2}, {"num_envs": 4, "num_workers": 2}, "leave env.num_workers at 1"),
    ],
)
def test_what_cannot_be_collected_is_refused(collect, env, said):
    config = OffPolicyConfig(env=EnvConfig(**env), collect=OffPolicyCollectConfig(**collect))
    with pytest.raises(ValueError, match=said):
        validate(config)


def test_environments_whose_state_cannot_be_saved_any_more_start_new_episodes(loop, capsys, monkeypatch):
    """Saving fails at the checkpoint, and restoring fails at the resume: both are told with their reason."""

    def refuse(*_):
        raise StateError("the simulator has a secret")

    settings = {"total_frames": 40, "eval_interval": 0}
    for method, total, said in [
        ("get_state", 40, ""),
        ("set_state", 80, "new episodes start at frame 40: the simulator has a secret"),
        ("set_state", 120, "new episodes start at frame 80: the simulator has a secret"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(PointCircle, method, refuse)
            looped = loop(CollectConfig(frames_per_batch=20), **settings | {"total_frames": total})
            with looped.run:
                for _ in looped.collect():
                    looped.report()
        printed = capsys.readouterr().out
        assert said in printed
        assert bool(said) == ("new episodes" in printed)
        settings["resume"] = looped.run.directory
