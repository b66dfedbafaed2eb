"""Small Gymnasium environments whose every number is known."""

import functools

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from safe_components.envs import PointCircle


class Corridor(gymnasium.Env):
    """A walker at x moves by its action; reward x, cost 1 beyond 1; ends beyond 3."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)

    def __init__(self, start=None, cost=lambda x: int(x > 1), info_key="cost", render_mode=None):
        self.start, self.cost, self.info_key, self.render_mode = start, cost, info_key, render_mode
        self.executed = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1) if self.start is None else self.start
        self.t = 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.x, self.t], np.float64)

    def step(self, action):
        assert action.dtype == np.float32
        assert action.shape == (1,)
        self.executed.append(float(action[0]))
        self.x += float(action[0])
        self.t += 1
        return self.observe(), self.x, self.x > 3, False, {self.info_key: self.cost(self.x)}


class SixValues(Corridor):
    """Returns its cost in third place; info holds its parts. Counts its steps itself."""

    def __init__(self, max_episode_steps=None, **options):
        super().__init__(**options)
        self._max_episode_steps = max_episode_steps

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        truncated = self.t == self._max_episode_steps
        cost = info.pop("cost")
        parts = {"cost_a": cost, "cost_b": np.float64(abs(self.x))}
        return observation, reward, cost, terminated, truncated, parts


class Choice(Corridor):
    """The same with two actions, numbered from 1: back and forth."""

    action_space = spaces.Discrete(2, start=1)
    observation_space = spaces.Dict(x=spaces.Box(-np.inf, np.inf, (1, 1)), late=spaces.Discrete(2))

    def observe(self):
        return {"x": np.full((1, 1), self.x, np.float32), "late": int(self.t > 2)}

    def step(self, action):
        return super().step(np.array([-0.5 if action == 1 else 0.5], np.float32))


class Free(Corridor):
    """Reports no cost, but another number."""

    def step(self, action):
        *rest, _ = super().step(action)
        return *rest, {"speed": 1.0, "name": "free"}


for kind in (Corridor, Choice, Free):
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind, max_episode_steps=8)
gymnasium.register("SixValues-v0", entry_point=SixValues)  # Gymnasium's TimeLimit expects five values


class Plain(EnvBase):
    """The corridor as TorchRL would have it: one copy, float64, its costs among the observations."""

    def __init__(self, end=3.0, device="cpu"):
        super().__init__(device=device, batch_size=[])
        wide = functools.partial(Unbounded, dtype=torch.float64, device=device)
        self.observation_spec = Composite(observation=wide(2), cost=wide(()), speed=wide(1))
        self.action_spec = Bounded(-0.5, 0.5, (1,), dtype=torch.float64, device=device)
        self.reward_spec = wide(1)
        self.end, self.generator = end, torch.Generator()

    def _reset(self, tensordict=None, **kwargs):
        self.x = 2 * torch.rand(1, generator=self.generator, dtype=torch.float64) - 1
        self.t = 0
        return self.observed()

    def _step(self, tensordict):
        self.speed = tensordict["action"].abs()
        assert self.speed <= 0.5
        self.x, self.t = self.x + tensordict["action"], self.t + 1
        done = self.x > self.end
        return self.observed(cost=(self.x > 1).double().squeeze(-1), speed=self.speed).update(
            {"reward": self.x.clone(), "done": done, "terminated": done.clone()}
        )

    def observed(self, **signals):
        time = torch.full_like(self.x, self.t)
        nothing = {"cost": torch.zeros((), dtype=torch.float64), "speed": torch.zeros_like(self.x)}
        return TensorDict({"observation": torch.cat([self.x, time]), **nothing, **signals}, [])

    def _set_seed(self, seed):
        if seed is not None:
            self.generator.manual_seed(seed)


def circles(num_envs, frame_skip, device, cost_keys=("walls",), **options):
    """Several copies at once, with costs of its own; a ConstrainedEnv needs nothing added."""
    return PointCircle(num_envs, frame_skip=frame_skip, device=device, costs=cost_keys, **options)


def corridor(start=None):
    return Corridor(start)


def discrete_plain():
    env = Plain()
    env.action_spec = Unbounded(1)
    return env


def two_copies():
    return PointCircle(2)


NUMBER = 3
