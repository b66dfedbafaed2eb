"""n-step transitions against sums written out for each step."""

import pytest
import torch
from tensordict import TensorDict

from safe_components.critics import n_step_transform, n_step_transitions

GAMMA = 0.9


def rollout(environments, length):
    """Random episodes; every observation names its environment and step, every next one the step after."""
    torch.manual_seed(0)
    number = 100.0 * torch.arange(environments)[:, None] + torch.arange(length)
    done = torch.rand(environments, length, 1) < 0.2
    terminated = done & (torch.rand(environments, length, 1) < 0.5)
    following = TensorDict(
        observation=number[..., None] + 1,
        reward=torch.randn(environments, length, 1, dtype=torch.float64),
        cost=torch.rand(environments, length, 2, dtype=torch.float64),
        done=done,
        terminated=terminated,
        truncated=done & ~terminated,
        batch_size=[environments, length],
    )
    return TensorDict(
        observation=number[..., None],
        action=torch.randn(environments, length, 1),
        next=following,
        batch_size=[environments, length],
    )


def expected_transition(steps, environment, t, n_steps):
    """The transition of one step, from the definition."""
    episode = steps["next"][environment]
    last = t
    while last < t + n_steps - 1 and not episode["done"][last]:
        last += 1
    sums = {
        key: sum(GAMMA**j * episode[key][t + j] for j in range(last - t + 1)) for key in ("reward", "cost")
    }
    return (
        steps["action"][environment, t],
        episode["observation"][last],
        sums["reward"],
        sums["cost"],
        episode["terminated"][last],
        last - t + 1,
    )


@pytest.mark.parametrize("lengths", [[40], [1] * 40, [2, 3, 1, 1, 30, 3], [5] * 8])
@pytest.mark.parametrize("n_steps", [1, 3, 7])
@pytest.mark.parametrize("environments", [1, 3])
def test_every_complete_step_comes_once_however_the_steps_arrive(environments, n_steps, lengths):
    steps = rollout(environments, 40)
    transitions_of = n_step_transitions(n_steps, GAMMA)
    arrived, parts = 0, []
    for length in lengths:
        chunk = steps[:, arrived : arrived + length].clone()
        part = transitions_of(chunk)
        chunk["next"].zero_()  # as a collector does that reuses its memory
        arrived += length
        assert (part is None) == (arrived <= n_steps)
        if part is not None:
            assert part.ndim == 1
            parts.append(part)
    found = torch.cat(parts)
    complete = 40 - n_steps
    assert len(found) == environments * complete
    ordered = found[found["observation"].squeeze(-1).argsort()]
    for index, transition in enumerate(ordered.unbind(0)):
        environment, t = divmod(index, complete)
        assert transition["observation"].item() == 100 * environment + t
        following = transition["next"]
        got = (
            transition["action"],
            following["observation"],
            following["reward"],
            following["cost"],
            following["terminated"],
            transition["steps_to_next_obs"].item(),
        )
        # TorchRL's powers of gamma are float32, which rounds by 6e-8; sums of 7 numbers of order 1.
        torch.testing.assert_close(
            got, expected_transition(steps, environment, t, n_steps), rtol=0, atol=1e-6
        )


def test_transitions_hold_what_critics_and_policies_read_and_nothing_else():
    steps = rollout(1, 10)
    steps["next", "episode_cost"] = steps["next", "cost"]
    found = n_step_transitions(2, GAMMA, reward_keys=["reward"])(steps)
    assert set(found.keys(True, True)) == {
        "observation",
        "action",
        ("next", "observation"),
        ("next", "reward"),
        ("next", "terminated"),
        "steps_to_next_obs",
    }


@pytest.mark.parametrize("make", [n_step_transform, n_step_transitions])
@pytest.mark.parametrize(("n_steps", "gamma"), [(0, 0.9), (2, 0.0), (2, 1.1)])
def test_bad_settings_are_named(make, n_steps, gamma):
    with pytest.raises(ValueError, match=r"n_steps=0|gamma="):
        make(n_steps, gamma)
