"""bullet-safety-gym, and the wrapper that makes its episodes reproducible."""

import importlib.util
import random

import gymnasium
import numpy as np
import pytest
import torch

from safe_components.envs import make_env
from safe_components.envs.bullet import make_bullet
from safe_components.envs.random_state import OwnRandomState


class Lottery(gymnasium.Env):
    """Draws from the global generators, and remembers its last episode as a simulator might."""

    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    trace = 0.0

    def reset(self, *, seed=None, options=None):
        return np.array([np.random.rand(), random.random(), self.trace]), {}

    def step(self, action):
        self.trace = 1.0
        return np.array([np.random.rand(), random.random(), self.trace]), 0.0, False, False, {"cost": 0}


def test_own_random_state_repeats_and_leaves_the_global_generators_alone():
    np.random.seed(0)
    random.seed(0)
    expected = np.random.rand(), random.random()
    np.random.seed(0)
    random.seed(0)
    a, b = (OwnRandomState(Lottery, in_step=True) for _ in range(2))
    episodes = []
    for env in (a, b, a):
        first, _ = env.reset(seed=4)
        episodes.append(np.stack([first, env.step(None)[0], env.reset()[0]]))
        np.testing.assert_array_equal(episodes[-1], episodes[0])
    assert len(np.unique(episodes[0][:, 0])) == 3
    assert (np.random.rand(), random.random()) == expected


def test_bullet_is_rendered_as_gymnasium_calls_it(monkeypatch):
    class Package(gymnasium.Env):
        def render(self, mode="human"):  # the package's signature
            return np.zeros((2, 3, 3), np.uint8) if mode == "rgb_array" else np.array([])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib, "import_module", lambda name: name)
    monkeypatch.setattr(gymnasium, "make", lambda *words, **options: Package())
    assert make_bullet("SafetyCarRun-v0", render_mode="rgb_array").render().shape == (2, 3, 3)
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'human'"):
        make_bullet("SafetyCarRun-v0", render_mode="human")


@pytest.mark.skipif(importlib.util.find_spec("bullet_safety_gym") is not None, reason="bullet is installed")
def test_bullet_missing():
    with pytest.raises(ImportError, match="pip install --no-deps bullet-safety-gym"):
        make_env("SafetyBallRun-v0")


@pytest.mark.skipif(
    importlib.util.find_spec("bullet_safety_gym") is None,
    reason="the optional extra bullet-safety-gym is not installed",
)
@pytest.mark.parametrize("env_id", ["SafetyBallRun-v0", "SafetyCarCircle-v0"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bullet_episodes_repeat(env_id, capfd):
    with capfd.disabled():  # the package flushes C's own stdout, which pytest has replaced
        env = make_env(env_id, num_envs=2, seed=1)
        rollouts = []
        for _ in range(2):
            env.set_seed(1)
            torch.manual_seed(0)
            rollouts.append(env.rollout(20))
            np.random.rand()
        env.close()
    assert (rollouts[0] == rollouts[1]).all()
    assert rollouts[0]["next", "cost"].shape == (2, 20, 1)
