"""``check_env``: every family of ids keeps the laws, and each law finds the environment that breaks it."""

import functools
import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from cost_envs import Corridor
from gymnasium import spaces
from torchrl.envs import PendulumEnv

from safe_components.envs import GymnasiumBatch, PointCircle, check_env

CORRIDOR = "cost_envs:Corridor-v0"


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("PointCircle", {"num_envs": 2, "max_episode_steps": 40}),
        ("PointCircle", {"cost_keys": ("walls", "speed"), "frame_skip": 2}),
        ("PointCircle", {"cost_keys": (), "max_episode_steps": 40}),
        (CORRIDOR, {"num_envs": 2}),
        ("cost_envs:Choice-v0", {"num_envs": 3, "frame_skip": 2}),
        ("cost_envs:SixValues-v0", {"max_episode_steps": 12, "cost_keys": ("cost_a", "cost_b")}),
        ("SafetyPointGoal1-v0", {"num_envs": 2, "max_episode_steps": 20}),
        ("SafetyHalfCheetahVelocity-v1", {"max_episode_steps": 20}),
        pytest.param(
            "SafetyBallRun-v0",
            {"max_episode_steps": 20},
            marks=pytest.mark.skipif(
                importlib.util.find_spec("bullet_safety_gym") is None, reason="bullet is not installed"
            ),
        ),
    ],
)
def test_every_family_keeps_the_laws(env_id, options):
    report = check_env(env_id, steps=50, **options)
    report.raise_if_broken()
    assert report
    assert [finding.law for finding in report.findings] == [
        "made", "specs", "signals", "seeds", "continuity", "flags",
        "time limit", "sums", "partial resets", "memory", "actions",
    ]  # fmt: skip


@pytest.mark.slow
def test_workers_keep_the_laws():
    check_env(CORRIDOR, steps=20, num_envs=4, num_workers=2).raise_if_broken()


@pytest.mark.parametrize("given", [Corridor, Corridor(), GymnasiumBatch(Corridor, num_envs=2)])
def test_functions_and_environments_are_taken(given):
    report = check_env(given, steps=20)
    assert report, report
    if not callable(given):
        given.reset()  # it stays open


class Unseeded(Corridor):
    """Has a generator of its own, which no seed reaches."""

    def reset(self, **options):
        super().reset(**options)
        self.x = np.random.default_rng().uniform(-1, 1)
        return self.observe(), {}


class Alike(Corridor):
    """Takes seeds modulo 1, after a hidden count of its resets."""

    count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=None if seed is None else seed % 1)
        return self.observe(), {}


class ResetsItself(Corridor):
    """Returns the first observation of the next episode as the last one of this, and does not say so."""

    def __init__(self):
        super().__init__(start=0.0)

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        if done := self.t == 6:
            observation, _ = self.reset()
        return observation, reward, done, False, info


class Endless(Corridor):
    """Says that it has a time limit, and has none."""

    _max_episode_steps = 15


class Unhealthy(Corridor):
    """Reports NaN after a while."""

    def __init__(self):
        super().__init__(cost=lambda x: float("nan") if self.t > 4 else 0.0)


class Wild(Corridor):
    """A law-abiding environment with actions beyond its bounds executed as they are."""

    def step(self, action):
        return super().step(action)


def broken_point_circle(**methods):
    return type("Broken", (PointCircle,), methods)(num_envs=2, episode_length=20)


def half_done(self, source):
    out = PointCircle._tensordict(self, source)
    return out.set("done", torch.zeros_like(out["done"]))


def own_memory(self, source):
    out = PointCircle._tensordict(self, source)
    self.shared = out.clone() if not hasattr(self, "shared") else self.shared
    self.shared["observation"].copy_(out["observation"])
    return out.set("observation", self.shared["observation"])


def unclipped(self, tensordict):
    out = PointCircle._step(self, tensordict)
    return out.set("reward", out["reward"] + tensordict["action"].sum(-1, keepdim=True).nan_to_num())


def resets_all(self, tensordict=None, *, seed=None):
    return PointCircle._reset(self, None, seed=seed)


def ignores_seed(self, tensordict=None, *, seed=None):
    return PointCircle._reset(self, tensordict)


def doubles(self, tensordict):
    out = PointCircle._step(self, tensordict)
    return out.set("reward", out["reward"].double())


@pytest.mark.parametrize(
    ("env", "law", "text"),
    [
        (Unseeded, "seeds", "draw only from self.np_random"),
        (Alike, "seeds", None),
        (ResetsItself, "continuity", "the environment resets itself without saying so"),
        (Endless, "time limit", "was not truncated at max_episode_steps 15"),
        (Unhealthy, "signals", "cost is nan"),
        (functools.partial(Corridor, cost=lambda x: -1.0), "made", "cost is -1"),
        (lambda: Corridor(info_key="speed"), "made", "reports no cost"),
        (broken_point_circle(_tensordict=half_done), "flags", "done is not terminated or truncated"),
        (broken_point_circle(_tensordict=own_memory), "memory", "overwrote"),
        (broken_point_circle(_step=unclipped), "actions", "beyond the bounds"),
        (broken_point_circle(_reset=resets_all), "partial resets", "changed others"),
        (broken_point_circle(_reset=ignores_seed), "seeds", r"reset\(seed=0\) differs"),
        (broken_point_circle(_step=doubles), "specs", "float64"),
    ],
)
def test_a_broken_law_is_found(env, law, text):
    report = check_env(env, steps=30)
    findings = {finding.law: finding for finding in report.findings}
    assert findings[law].verdict == ("FAIL" if text else "note"), report
    if text:
        assert not report
        assert findings[law] in report.failures
        with pytest.raises(ValueError, match=rf"(?s)laws? broken.*FAIL  {law}: .*{text}"):
            report.raise_if_broken()


def test_what_was_not_seen_is_noted():
    report = check_env(lambda: Corridor(cost=lambda x: 0.0), steps=10)
    notes = {finding.law: finding.text for finding in report.findings if finding.verdict == "note"}
    assert notes["signals"] == "no cost in 10 random steps"
    assert notes["time limit"].startswith("none is known")
    assert notes["partial resets"] == "there is one copy; num_envs=2 checks them"


def test_bad_arguments():
    with pytest.raises(ValueError, match="steps is 9, must be at least 10"):
        check_env("PointCircle", steps=9)
    report = check_env(PointCircle(), num_envs=2)
    assert "options ['num_envs'] need an id" in str(report)


def test_environments_of_torchrl_without_cost_are_told():
    report = check_env(PendulumEnv(), steps=10)
    assert "FAIL  specs: the environment has no 'observation'" in str(report)


def test_other_actions():
    class Image(Corridor):
        observation_space = spaces.Box(0, 255, (2, 3), np.uint8)
        action_space = spaces.Box(0, 3, (2,), np.int64)

        def observe(self):
            return np.full((2, 3), self.t, np.uint8)

        def step(self, action):
            return super().step(np.float32([0.0]))

    assert check_env(functools.partial(gymnasium.wrappers.OrderEnforcing, Image()), steps=10)


class TakesNaN(PointCircle):
    """Replaces an action that is not finite, in place of refusing it."""

    def _step(self, tensordict):
        return super()._step(tensordict.set("action", tensordict["action"].nan_to_num()))


def test_an_environment_that_executes_nan_is_found():
    report = check_env(TakesNaN(num_envs=2, episode_length=40), steps=50)
    assert [(f.law, f.text) for f in report.failures] == [("actions", "an action of NaN is executed")]


def test_a_limit_that_was_not_reached_is_a_note():
    report = check_env("PointCircle", steps=20, max_episode_steps=900)
    (note,) = (finding for finding in report.findings if finding.law == "time limit")
    assert (note.verdict, note.text) == ("note", "900 steps, which were not run; steps=91 runs them")
