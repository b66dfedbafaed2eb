"""Evaluation counts whole episodes of the deterministic policy; observations are scaled as promised."""

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import TransformedEnv

from safe_components.envs import make_env
from safe_components.policies import gaussian_policy
from safe_components.training import evaluate, fit_observation_norm, observation_norm, scale_steps


class Countdown(gymnasium.Env):
    """Lasts 1 to 6 steps; rewards 1 and costs (2, the action) a step."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 7))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.ones(1, np.float32), 1.0, self.left == 0, False, {"cost": np.array([2.0, float(action[0])])}


@pytest.fixture
def countdown():
    gymnasium.register("Countdown-v0", entry_point=Countdown)
    yield
    del gymnasium.registry["Countdown-v0"]


def policy():
    torch.manual_seed(0)
    return gaussian_policy(1, action_low=[-1.0], action_high=[1.0], hidden_sizes=(8,))


@pytest.mark.parametrize(("num_envs", "episodes", "counted"), [(1, 3, 3), (4, 4, 4), (4, 10, 12)])
def test_whole_episodes_are_summed(countdown, num_envs, episodes, counted):
    ended = evaluate(policy(), make_env("Countdown-v0", num_envs=num_envs), episodes, seed=0)
    assert ended["reward"].shape == (counted,)
    assert torch.equal(ended["reward"], ended["length"])
    assert torch.equal(ended["cost"][:, 0], 2 * ended["length"])
    assert ended["length"].min() >= 1
    assert ended["length"].max() <= 6


def test_short_episodes_are_not_over_represented(countdown):
    """Uniform lengths 1..6 have mean 3.5; the first 400 to end among 64 copies would have less."""
    ended = evaluate(policy(), make_env("Countdown-v0", num_envs=64), 400, seed=1)
    standard_error = (35 / 12 / 448) ** 0.5
    assert abs(ended["length"].mean() - 3.5) < 4 * standard_error


def test_actions_are_the_mean(countdown):
    actor = policy()
    first, then = (
        actor.get_dist(TensorDict(observation=torch.full((1,), x), batch_size=[])).mean for x in (0.0, 1.0)
    )
    ended = evaluate(actor, make_env("Countdown-v0"), 3, seed=0)
    expected = first + (ended["length"] - 1) * then
    torch.testing.assert_close(ended["cost"][:, 1], expected.detach().double(), atol=1e-5, rtol=1e-5)


def test_one_seed_gives_the_same_episodes_each_time(countdown):
    env = make_env("Countdown-v0", num_envs=2)
    first, second = (evaluate(policy(), env, 6, seed=5)["length"] for _ in range(2))
    assert torch.equal(first, second)


def test_endless_episodes_and_no_episodes_are_errors(countdown):
    env = make_env("Countdown-v0", num_envs=64)
    with pytest.raises(RuntimeError, match="not over after 2 steps"):
        evaluate(policy(), env, 640, max_steps=2)
    with pytest.raises(ValueError, match="episodes is 0"):
        evaluate(policy(), env, 0)


def test_scaled_observations_have_mean_zero_and_deviation_one():
    norm = observation_norm(4)
    plain = make_env("PointCircle", num_envs=16, seed=0)
    raw = plain.rollout(200, break_when_any_done=False)["observation"]
    untouched = TransformedEnv(make_env("PointCircle", num_envs=16, seed=0), norm.clone())
    torch.testing.assert_close(untouched.reset()["observation"], raw[:, 0])  # identity until it is fitted
    fit_observation_norm(norm, raw)
    steps = TensorDict(
        observation=raw, next=TensorDict(observation=raw, batch_size=[16, 200]), batch_size=[16, 200]
    )
    within = TransformedEnv(make_env("PointCircle", num_envs=16, seed=0), norm.clone()).rollout(1)
    torch.testing.assert_close(
        within["observation"][:, 0], scale_steps(norm, steps.clone())["observation"][:, 0]
    )
    for key in ("observation", ("next", "observation")):
        scaled = scale_steps(norm, steps.clone())[key].reshape(-1, 4)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_a_component_that_hardly_moves_is_only_centred():
    norm = observation_norm(2)
    fit_observation_norm(norm, torch.tensor([[[9.81, 0.0], [9.81, 4.0]]]))
    assert norm.loc.tolist() == pytest.approx([9.81, 2.0])
    assert norm.scale.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("units", [[1e-6] * 3, [1e6] * 3, [1e-12] * 3, [1e-4, 1.0, 1e4]])
def test_the_units_of_observations_do_not_matter(units):
    torch.manual_seed(0)
    raw = torch.randn(500, 3) + torch.tensor([300.0, 0.0, -1.0])
    scaled = []
    for unit in (torch.ones(3), torch.tensor(units)):
        norm = observation_norm(3)
        fit_observation_norm(norm, raw * unit)
        scaled.append((raw * unit - norm.loc) / norm.scale)
    torch.testing.assert_close(scaled[1], scaled[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled[1].std(0), torch.ones(3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_a_sensor_of_rare_contacts_keeps_the_scale_of_the_others(unit):
    torch.manual_seed(0)
    raw = torch.randn(1000, 2) * unit
    raw[:, 1] = 0
    raw[7, 1] = 0.1 * unit
    norm = observation_norm(2)
    fit_observation_norm(norm, raw)
    std = raw.std(0, correction=0)
    torch.testing.assert_close(norm.scale, torch.stack([std[0], std.square().mean().sqrt()]))
