"""Training episodes without noise, and the limits that then hold for them."""

import pytest
import torch
from tensordict import TensorDict

from safe_components import keys
from safe_components.policies import gaussian_policy
from safe_components.training import (
    CostControl,
    DeterministicEpisodes,
    EnvConfig,
    Loop,
    OffPolicyConfig,
    Run,
    RunConfig,
    Task,
    read_metrics,
    with_noise,
)
from safe_components.training.options import OffPolicyCollectConfig, PriceConfig


def config_of(tmp_path, share):
    env = EnvConfig(id="PointCircle", num_envs=8, frame_skip=1, max_episode_steps=20)
    run = RunConfig(
        run_dir=tmp_path / "run",
        loggers=(),
        progress=False,
        total_frames=3200,
        log_interval=1600,
        eval_interval=0,
    )
    collect = OffPolicyCollectConfig(frames_per_batch=800, deterministic_share=share)
    return OffPolicyConfig(env=env, run=run, collect=collect)


def make_policy(task):
    torch.manual_seed(0)
    return gaussian_policy(4, **task.bounds, hidden_sizes=(8,))


def test_the_draw_of_the_episode_chooses_between_the_mode_and_a_sample():
    policy = gaussian_policy(3, action_low=[-1.0, -1.0], action_high=[1.0, 1.0])
    states = TensorDict(
        {"observation": torch.randn(4, 3), "episode_draw": torch.tensor([[0.1], [0.3], [0.0], [0.9]])}, [4]
    )
    torch.manual_seed(1)
    acted = DeterministicEpisodes(policy, 0.3)(states.clone())
    torch.manual_seed(1)
    sampled = policy(states.clone())
    assert acted["deterministic"].flatten().tolist() == [True, False, True, False]
    mode = sampled["loc"]  # a Gaussian's
    torch.testing.assert_close(acted["action"][::2], mode[::2])
    assert torch.equal(acted["action"][1::2], sampled["action"][1::2])


def test_noise_that_is_added_to_an_action_is_left_out(tmp_path):
    task = Task(config_of(tmp_path, 0.5))
    policy = make_policy(task)
    states = TensorDict({"observation": torch.randn(2, 4), "episode_draw": torch.tensor([[0.2], [0.8]])}, [2])
    plain = policy(states.clone())["loc"]
    noisy = DeterministicEpisodes(with_noise(policy, 0.5, task), 0.5)(states)["action"]
    torch.testing.assert_close(noisy[0], plain[0])
    assert (noisy[1] - plain[1]).abs().max() > 1e-3


def collected(tmp_path, share):
    """Return the steps of a run, the costs that its loop handed on, its rows, and its policy."""
    config = config_of(tmp_path, share)
    task = Task(config)
    policy = make_policy(task)
    batches, costs = [], []
    with Run(config, policy=policy, norm=task.norm) as run:
        loop = Loop(run, task, policy, config.collect)
        for steps in loop.collect():
            batches.append(steps.clone())
            costs.append(loop.episode_costs)
            loop.report()
    return torch.cat(batches, 1), torch.cat(costs), read_metrics(run.directory / "metrics.csv"), policy


def test_an_episode_keeps_its_choice_and_the_costs_are_those_without_noise(tmp_path):
    steps, costs, rows, policy = collected(tmp_path, 0.25)
    chosen = steps["deterministic"].view(8, -1, 20)  # episodes of 20 steps
    assert torch.equal(chosen, chosen[..., :1].expand_as(chosen))
    episodes = chosen[..., 0].flatten()  # 160; a share of 0.25 has a standard deviation of 0.034
    assert 0.12 < episodes.double().mean() < 0.38
    mode = policy(steps.select("observation"))["loc"]
    is_mode = (steps["action"] - mode).abs().amax(-1) < 1e-5
    assert torch.equal(is_mode, steps["deterministic"].squeeze(-1))
    ended = steps[keys.DONE].squeeze(-1) & steps["deterministic"].squeeze(-1)
    assert sorted(costs.flatten().tolist()) == pytest.approx(
        sorted(steps[keys.EPISODE_COST][ended].flatten().tolist())
    )
    assert rows["deterministic_episodes"].sum() == episodes.sum()
    first = ended & (torch.arange(400) < 200)
    mean = steps[keys.EPISODE_REWARD][first].mean()
    assert rows["deterministic_episode_reward"][0] == pytest.approx(float(mean), rel=1e-5)


def test_without_a_share_nothing_is_added(tmp_path):
    steps, costs, rows, _ = collected(tmp_path, 0.0)
    assert "deterministic" not in steps
    assert "episode_draw" not in steps
    assert len(costs) == 160
    assert not any(name.startswith("deterministic") for name in rows)


def test_the_price_follows_the_steps_without_noise(tmp_path):
    config = config_of(tmp_path, 0.5)
    task = Task(config)
    chosen = torch.tensor([True, False]).view(2, 1, 1).expand(2, 10, 1)
    cost = torch.where(chosen, 0.1, 7.0)
    flags = {"done": torch.zeros(2, 10, 1, dtype=torch.bool), "step_count": torch.ones(2, 10, 1)}
    steps = TensorDict({"deterministic": chosen, "next": {"cost": cost, **flags}}, [2, 10])
    limit, none = torch.tensor([25.0]), torch.empty(0, 1)
    both, alone, never = (CostControl(PriceConfig(), config, task, 800) for _ in range(3))
    both.observe(limit, steps, none)
    alone.observe(limit, steps[:1].exclude("deterministic"), none)
    assert both() == alone()
    assert float(both.running_cost.value) == pytest.approx(0.1 * 20)
    before = never()
    never.observe(limit, steps[1:], none)
    assert never() == before
    assert never.running_cost.value.isnan()
