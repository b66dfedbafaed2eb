"""The cost of an episode, estimated from every step."""

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import StepCounter, TransformedEnv

from safe_components.envs import make_env
from safe_components.lagrangian import RunningEpisodeCost


def steps(cost, done, count=None):
    """Steps whose episodes are as long as ``step_count`` says; by default each step is an episode's first."""
    cost, done = torch.as_tensor(cost), torch.as_tensor(done)
    count = torch.ones(done.shape, dtype=torch.long) if count is None else torch.as_tensor(count)
    following = TensorDict(cost=cost, done=done.unsqueeze(-1), step_count=count.unsqueeze(-1))
    return TensorDict(next=following, batch_size=done.shape)


def test_episodes_of_the_time_limit_need_no_end():
    running = RunningEpisodeCost(2, episode_length=1000, memory=500)
    done = torch.zeros(3, 20, dtype=torch.bool)
    for _ in range(5):
        value = running.update(steps(torch.tensor([0.1, 0.02]).expand(3, 20, 2), done))
    torch.testing.assert_close(value, torch.tensor([100.0, 20.0], dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_lengths_are_those_of_whole_episodes_whatever_the_batches(batch):
    """Random ends; the lengths found by walking through each copy, the average in closed form."""
    generator = np.random.default_rng(0)
    done = generator.random((4, 280)) < 0.1
    running = RunningEpisodeCost(1, episode_length=50, memory=100.0)
    length, age = 50.0, np.zeros(4, dtype=int)
    for start in range(0, 280, batch):
        part = done[:, start : start + batch]
        count, ended = np.zeros(part.shape, dtype=int), []
        for copy in range(4):
            for t in range(part.shape[1]):
                age[copy] += 1
                count[copy, t] = age[copy]
                if part[copy, t]:
                    ended.append(age[copy])
                    age[copy] = 0
        running.update(steps(np.ones((*part.shape, 1)), part, count))
        if ended:
            length += (1 - math.exp(-sum(ended) / 100.0)) * (np.mean(ended) - length)
        assert running.length.item() == pytest.approx(length, rel=1e-12)
    assert running.value.item() == pytest.approx(length)


def test_an_episode_that_starts_anew_at_a_resume_counts_from_its_start():
    """Of an episode of 30 steps, 20 were before the resume; the new one takes 5."""
    running = RunningEpisodeCost(1, episode_length=10, memory=1e-6)  # the last batch alone counts
    running.update(steps(torch.ones(1, 20, 1), torch.zeros(1, 20, dtype=torch.bool), [list(range(1, 21))]))
    resumed = RunningEpisodeCost(1, episode_length=10, memory=1e-6)
    resumed.load_state_dict(running.state_dict())
    ended = torch.tensor([[False] * 4 + [True]])
    resumed.update(steps(torch.ones(1, 5, 1), ended, [[1, 2, 3, 4, 5]]))
    assert resumed.length.item() == 5.0


def test_the_counter_of_torchrl_is_what_it_reads():
    env = TransformedEnv(make_env("PointCircle", num_envs=3, max_episode_steps=8), StepCounter())
    running = RunningEpisodeCost(1, episode_length=100, memory=1e-6)
    running.update(env.rollout(20, break_when_any_done=False))
    assert running.length.item() == 8.0
    plain = make_env("PointCircle", num_envs=3, max_episode_steps=8).rollout(4)
    with pytest.raises(KeyError, match="append TorchRL's StepCounter"):
        running.update(plain)


def test_copies_in_step_do_not_make_the_estimate_jump_at_the_end():
    """A cost of 0.05 in each step of an episode of 100: J is 5 throughout."""
    running = RunningEpisodeCost(1, episode_length=100, memory=250)
    done = torch.zeros(10, 20, dtype=torch.bool)
    values = []
    for index in range(50):
        ended = done.clone()
        ended[:, -1] = index % 5 == 4
        count = (index % 5) * 20 + torch.arange(1, 21).expand(10, 20)
        values.append(running.update(steps(torch.full((10, 20, 1), 0.05), ended, count)).item())
    assert values == pytest.approx([5.0] * 50)


def test_it_forgets():
    running = RunningEpisodeCost(1, episode_length=10, memory=20)
    done = torch.zeros(1, 20, dtype=torch.bool)
    running.update(steps(torch.full((1, 20, 1), 3.0), done))
    value = running.update(steps(torch.zeros(1, 20, 1), done))
    assert value.item() == pytest.approx(30.0 * math.exp(-1.0))


def test_a_checkpoint_continues():
    torch.manual_seed(0)
    counts = torch.randint(1, 12, (6, 2, 9))
    batches = [steps(torch.rand(2, 9, 1), torch.rand(2, 9) < 0.2, count) for count in counts]
    whole, first, second = (RunningEpisodeCost(1, 12, 30) for _ in range(3))
    for part in batches[:3]:
        first.update(part)
    second.load_state_dict(first.state_dict())
    for part in batches[3:]:
        second.update(part)
    for part in batches:
        whole.update(part)
    assert torch.equal(whole.value, second.value)


@pytest.mark.parametrize("bad", [{"num_costs": -1}, {"episode_length": 0}, {"memory": math.inf}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=.* must be (positive and finite|at least 0)"):
        RunningEpisodeCost(**({"num_costs": 1, "episode_length": 1, "memory": 1.0} | bad))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"cost must have the shape \(3, 4, 1\), got \(3, 4, 2\)"):
        RunningEpisodeCost(1, 10, 10).update(steps(torch.zeros(3, 4, 2), torch.zeros(3, 4, dtype=torch.bool)))
