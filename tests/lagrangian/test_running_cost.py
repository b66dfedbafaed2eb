"""The cost of an episode, estimated from every step."""

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from safe_components.lagrangian import RunningEpisodeCost


def steps(cost, done):
    cost, done = torch.as_tensor(cost), torch.as_tensor(done)
    return TensorDict(next=TensorDict(cost=cost, done=done.unsqueeze(-1)), batch_size=done.shape)


def test_episodes_of_the_time_limit_need_no_end():
    running = RunningEpisodeCost(2, 3, episode_length=1000, memory=500)
    done = torch.zeros(3, 20, dtype=torch.bool)
    for _ in range(5):
        value = running.update(steps(torch.tensor([0.1, 0.02]).expand(3, 20, 2), done))
    torch.testing.assert_close(value, torch.tensor([100.0, 20.0], dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_lengths_are_those_of_whole_episodes_whatever_the_batches(batch):
    """Random ends; the lengths found by walking through each copy, the average in closed form."""
    generator = np.random.default_rng(0)
    done = generator.random((4, 280)) < 0.1
    running = RunningEpisodeCost(1, 4, episode_length=50, memory=100.0)
    length, age = 50.0, np.zeros(4, dtype=int)
    for start in range(0, 280, batch):
        part = done[:, start : start + batch]
        running.update(steps(np.ones((*part.shape, 1)), part))
        ended = []
        for copy in range(4):
            for t in range(part.shape[1]):
                age[copy] += 1
                if part[copy, t]:
                    ended.append(age[copy])
                    age[copy] = 0
        if ended:
            length += (1 - math.exp(-sum(ended) / 100.0)) * (np.mean(ended) - length)
        assert running.length.item() == pytest.approx(length, rel=1e-12)
        assert running.age.tolist() == age.tolist()
    assert running.value.item() == pytest.approx(length)


def test_copies_in_step_do_not_make_the_estimate_jump_at_the_end():
    """A cost of 0.05 in each step of an episode of 100: J is 5 throughout."""
    running = RunningEpisodeCost(1, 10, episode_length=100, memory=250)
    done = torch.zeros(10, 20, dtype=torch.bool)
    values = []
    for index in range(50):
        ended = done.clone()
        ended[:, -1] = index % 5 == 4
        values.append(running.update(steps(torch.full((10, 20, 1), 0.05), ended)).item())
    assert values == pytest.approx([5.0] * 50)


def test_it_forgets():
    running = RunningEpisodeCost(1, 1, episode_length=10, memory=20)
    done = torch.zeros(1, 20, dtype=torch.bool)
    running.update(steps(torch.full((1, 20, 1), 3.0), done))
    value = running.update(steps(torch.zeros(1, 20, 1), done))
    assert value.item() == pytest.approx(30.0 * math.exp(-1.0))


def test_a_checkpoint_continues():
    torch.manual_seed(0)
    batches = [steps(torch.rand(2, 9, 1), torch.rand(2, 9) < 0.2) for _ in range(6)]
    whole, first, second = (RunningEpisodeCost(1, 2, 12, 30) for _ in range(3))
    for part in batches[:3]:
        first.update(part)
    second.load_state_dict(first.state_dict())
    for part in batches[3:]:
        second.update(part)
    for part in batches:
        whole.update(part)
    assert torch.equal(whole.value, second.value)


@pytest.mark.parametrize(
    "bad", [{"num_costs": 0}, {"num_envs": 0}, {"episode_length": 0}, {"memory": math.inf}]
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=.* must be positive and finite"):
        RunningEpisodeCost(**({"num_costs": 1, "num_envs": 1, "episode_length": 1, "memory": 1.0} | bad))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"cost must be \[N, T, m\] = \[2, T, 1\], got \(3, 4, 1\)"):
        RunningEpisodeCost(1, 2, 10, 10).update(
            steps(torch.zeros(3, 4, 1), torch.zeros(3, 4, dtype=torch.bool))
        )
