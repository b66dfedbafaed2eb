"""One row for each training episode: what it earned and cost, where and when it ended."""

import csv

import gymnasium
import numpy as np
import pytest
from cost_envs import Corridor
from small_runs import small, train

import cvpo
import ppo_lag
from safe_components.training import load_config, with_run

gymnasium.register("NearTheEnd-v0", lambda: Corridor(start=2.6), max_episode_steps=8)


def episodes_of(directory):
    with (directory / "episodes.csv").open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def test_episodes_of_any_length_follow_one_another_in_their_copy(tmp_path):
    flags = "--env.id NearTheEnd-v0 --env.num-envs 3 --env.max-episode-steps 8 --collect.frames-per-batch 30"
    flags += " --collect.warmup-frames 60 --total-frames 1200 --log-interval 30"
    rows, _ = train(ppo_lag, tmp_path / "run", *flags.split())
    episodes = episodes_of(tmp_path / "run")
    assert list(episodes[0]) == ["frames", "copy", "reward", "cost", "length"]
    assert [e["frames"] for e in episodes] == sorted(e["frames"] for e in episodes)
    assert {e["length"] for e in episodes} > {8.0}  # some end before their limit
    for copy in range(3):
        # The environments of the random steps end with them, at frame 60.
        ends = [e for e in episodes if e["copy"] == copy and e["frames"] > 60]
        steps = np.diff([60, *(e["frames"] for e in ends)]) / 3
        assert steps.tolist() == [e["length"] for e in ends]
    # A row of metrics is the mean over its episodes; the first one holds those of the random steps, too.
    before = np.array([0, *rows["frames"][:-1]])
    for row, (start, end) in enumerate(zip(before, rows["frames"], strict=True)):
        ended = [e for e in episodes if start < e["frames"] <= end]
        assert len(ended) == rows["episodes"][row]
        for name in ("reward", "cost", "length"):
            mean = np.mean([e[name] for e in ended]) if ended else np.nan
            assert rows[f"episode_{name}"][row] == pytest.approx(mean, rel=1e-5, abs=1e-5, nan_ok=True)


@pytest.mark.slow
def test_a_resumed_run_repeats_no_episode_and_names_each_cost(tmp_path):
    flags = ("--env.cost-keys", "walls", "speed", "--cost-limit", "5", "10", "--checkpoint-interval", "400")
    train(cvpo, tmp_path / "run", *flags, "--total-frames", "800")
    cvpo.main(with_run(load_config(cvpo.Config, tmp_path / "run"), total_frames=1200))
    whole = tmp_path / "whole"
    cvpo.main(small(cvpo, "--run-dir", whole, *flags, "--total-frames", 1200))
    episodes = episodes_of(tmp_path / "run")
    assert list(episodes[0]) == ["frames", "copy", "reward", "cost_walls", "cost_speed", "length"]
    assert episodes == episodes_of(whole)
    assert len(episodes) == 1200 / 50
