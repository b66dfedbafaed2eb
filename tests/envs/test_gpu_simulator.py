"""Brax and CRAX: their ids, limits and errors, and the battery of laws on each where they are installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from safe_components.envs import brax, crax, make_env, make_safety_gymnasium
from safe_components.envs.brax import BRAX_TASKS, SpeedLimit
from safe_components.envs.crax import CRAX_TASKS
from safe_components.training import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("env_id", BRAX_TASKS)
def test_speed_limits_are_those_of_safety_gymnasium(env_id):
    env = make_safety_gymnasium(env_id.removeprefix("brax/") + "-v1")
    task = BRAX_TASKS[env_id]
    assert env.unwrapped._velocity_threshold == task.limit
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    env.close()
    assert task.planar == ("y_velocity" in info)  # bodies that move in the plane report both components


class State:
    """What Brax's states look like, to ``SpeedLimit``."""

    def __init__(self, x, y, info=()):
        self.metrics = {"x_velocity": np.float32(x), "y_velocity": np.float32(y)}
        self.info = dict(info)

    def replace(self, info):
        return State(*self.metrics.values(), info)


class Robot:
    action_size = 2

    def reset(self, rng):
        return State(0, 0, {"own": 1})

    def step(self, state, action):
        return State(*action)


@pytest.mark.parametrize(
    ("planar", "costs"),
    [(False, [0, 1, 0, 0]), (True, [1, 1, 1, 0])],
)
def test_cost_is_1_while_the_speed_is_above_the_limit(planar, costs):
    env = SpeedLimit(Robot(), 2.5, planar)
    first = env.reset(None)
    assert (first.info["own"], first.info["cost"]) == (1, 0)
    motions = [(2.4, 2.4), (2.6, 0.0), (-2.6, 0.0), (1.5, 2.0)]  # the last at the limit, without rounding
    found = [env.step(first, motion).info["cost"] for motion in motions]
    assert [*map(float, found)] == costs
    assert found[0].dtype == np.float32


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("brax/ant", {}, "unknown environment 'brax/ant': there are brax/SafetyAntVelocity, .* JaxBatch"),
        ("brax/SafetyAntVelocity_level_2", {}, "unknown environment"),
        ("brax/SafetySwimmerVelocity", {}, "unknown environment"),
        ("crax/ant", {}, "unknown environment 'crax/ant': there are crax/safe_goal_point, .* JaxBatch"),
        ("crax/safe_goal_point_level_4", {}, "unknown environment"),
        ("brax/SafetyAntVelocity", {"num_envs": 4, "num_workers": 2}, "num_workers must be 1 .*, got 2"),
        ("crax/safe_goal_point", {"render_mode": "rgb_array"}, "render_mode must be None .*cannot be drawn"),
    ],
)
def test_what_is_refused(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(env_id, **options)


@pytest.mark.parametrize(
    ("env_id", "package", "command"),
    [
        ("brax/SafetyHopperVelocity", "brax", r'pip install "brax>=0.14" "mujoco-mjx>=3.3,<3.5"'),
        ("brax/SafetyWalker2dVelocity", "mujoco.mjx", r'pip install "brax>=0.14" "mujoco-mjx>=3.3,<3.5"'),
        ("crax/safe_circle_point_level_3", "crax.envs", "pip install --no-deps crax-bench==0.1.0"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_command(env_id, package, command, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found("torch"))
    with pytest.raises(ImportError, match=f"{env_id} needs {package}, which is not installed: .*{command}$"):
        make_env(env_id)


# With the packages


def missing(env_id):
    """Why a test of this id is skipped, or None."""
    simulator = brax if env_id in BRAX_TASKS else crax
    try:
        packages = [
            importlib.util.find_spec(name) for name in (simulator.__name__[-4:] + ".envs", "mujoco.mjx")
        ]
    except ModuleNotFoundError:
        packages = [None]
    return None if all(packages) else simulator.INSTALL


def run(*words, **settings):
    """Run Python in a process of its own, with JAX on the CPU and compiling quickly instead of well."""
    settings |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LEVELS = [env_id + level for env_id in CRAX_TASKS for level in ("", "_level_2", "_level_3")]


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [*BRAX_TASKS, *LEVELS])
def test_battery(env_id):
    if missing(env_id):
        pytest.skip(f"{env_id} is not installed: {missing(env_id)}")
    code = f"""
from safe_components.envs import check_env, make_env
env = make_env({env_id!r}, num_envs=3, max_episode_steps=12)
check_env(env, steps=20).raise_if_broken()
if "circle" in {env_id!r}:  # full speed ahead leads some copies out of the walls, which costs 0.1 a step
    ahead = lambda td: td.set("action", env.action_spec.high * env.action_spec.high.new_tensor([1, 0]))
    costs = [env.rollout(12, ahead, break_when_any_done=False)["next", "cost"].sum(1) for _ in range(6)]
    assert 0 < max(map(float, sum(costs))) < 0.1 * 72, costs
"""
    run("-c", code)


@pytest.mark.slow
def test_cvpo_trains_and_resumes_from_the_command_line(tmp_path):
    env_id = "brax/SafetyHopperVelocity"
    if missing(env_id):
        pytest.skip(f"{env_id} is not installed: {missing(env_id)}")
    flags = {
        "--run-dir": tmp_path / "run",
        "--env.id": env_id,
        "--env.num-envs": 4,
        "--env.max-episode-steps": 40,
        "--eval-episodes": 4,  # as many as train, so that one compiled simulator serves both
        "--total-frames": 960,
        "--log-interval": 160,
        "--collect.frames-per-batch": 160,
        "--collect.warmup-frames": 320,
        "--collect.updates-per-frame": 0.05,
        "--replay.size": 2000,
        "--replay.batch-size": 32,
        "--critics.hidden-sizes": (16, 16),
        "--policy.hidden-sizes": (16, 16),
        "--estep.num-particles": 8,
    }
    words = [str(word) for flag, value in flags.items() for word in (flag, *np.atleast_1d(value))]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")}
    run("recipes/cvpo.py", *words, "--no-progress", **compiled)
    said = run("recipes/cvpo.py", "--resume", str(tmp_path / "run"), "--total-frames", "1280", **compiled)
    assert "new episodes start" not in said  # the simulator continues where it was
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [*rows["frames"]] == [480, 640, 800, 960, 1120, 1280]
    assert sum(rows["episode_cost"]) > 0
    assert np.isfinite(rows["kl_mean"]).all()
