"""Making Safety-Gymnasium environments: ids, errors, seeds, and what importing the package leaves behind."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
from safety_gymnasium_alone import ROOT

from safe_components.envs import safety_gymnasium as safety
from safe_components.envs.safety_gymnasium import compat

AGENTS = ("Point", "Car", "Doggo", "Racecar", "Ant")
FAMILIES = ("Goal", "Button", "Push", "Circle", "Race", "FadingEasy", "FadingHard")
TASKS = [f"{family}{level}" for family in FAMILIES for level in range(3)] + ["Run0"]
DEBUGGED = ("Point", "Car", "Racecar")
NAVIGATION = [f"Safety{agent}{task}-v0" for agent in AGENTS for task in TASKS]
NAVIGATION += [f"Safety{agent}Circle1Debug-v0" for agent in DEBUGGED]
SEEDED = (
    "SafetyPointGoal1-v0",
    "SafetyCarButton1-v0",
    "SafetyPointPush1-v0",
    "SafetyAntCircle1-v0",
    "SafetyPointRun0-v0",
    "SafetyPointRace1-v0",
    "SafetyPointFadingHard2-v0",
    "SafetyHopperVelocity-v1",
)
VELOCITY = ("HalfCheetah", "Hopper", "Swimmer", "Walker2d", "Ant", "Humanoid")


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    start = """import safety_gymnasium_alone
safety_gymnasium_alone.replace_parent()
from safe_components.envs import safety_gymnasium as safety
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "envs")])
    return subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_ids_are_those_of_the_package():
    expected = {
        f"Safety{agent}{task}{kind}-v0" for agent in AGENTS for task in TASKS for kind in ("", "Vision")
    }
    expected |= {f"Safety{agent}{task}Debug-v0" for agent in DEBUGGED for task in TASKS}
    expected |= {f"Safety{robot}Velocity-{version}" for robot in VELOCITY for version in ("v0", "v1")}
    assert safety.safety_gymnasium_ids() == sorted(expected)


@pytest.mark.parametrize("env_id", NAVIGATION)
def test_every_navigation_task_runs(env_id):
    env = safety.make_safety_gymnasium(env_id)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, reward, cost, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert np.isfinite(reward)
    assert cost == info["cost_sum"]
    assert not terminated
    assert not truncated


@pytest.mark.parametrize("robot", VELOCITY)
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_every_velocity_task_runs(robot, version):
    env = safety.make_safety_gymnasium(f"Safety{robot}Velocity-{version}")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    _, reward, cost, *_ = env.step(np.zeros(env.action_space.shape))
    assert np.isfinite(reward)
    assert cost in (0.0, 1.0)


@pytest.mark.parametrize("robot", ["Ant", "Humanoid"])
def test_velocity_resets_observe_unit_quaternions(robot):
    observation, _ = safety.make_safety_gymnasium(f"Safety{robot}Velocity-v1").reset(seed=0)
    np.testing.assert_allclose(np.linalg.norm(observation[1:5]), 1.0, rtol=1e-14)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("env_id", SEEDED)
def test_one_seed_one_episode_and_another_seed_another(env_id, fast):
    def episode(env, seed):
        rows = [env.reset(seed=seed)[0]]
        random = np.random.RandomState(0)
        for _ in range(10):
            action = random.uniform(-1, 1, env.action_space.shape)
            rows.append(env.step(action)[0])
        return np.array(rows)

    with safety.plain_textures():
        env = safety.make_safety_gymnasium(env_id, fast=fast)
        first, other, again = episode(env, 11), episode(env, 12), episode(env, 11)
        elsewhere = episode(safety.make_safety_gymnasium(env_id, fast=fast), 11)
        # The layout drawn without a seed continues the stream of the one before it.
        unseeded = [env.reset()[0], env.reset()[0]]
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first, elsewhere)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(*unseeded)


def test_episode_lengths():
    def length(env_id, **kwargs):
        env = safety.make_safety_gymnasium(env_id, **kwargs)
        env.reset(seed=0)
        steps, truncated = 0, False
        while not truncated:
            *_, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape))
            steps += 1
            assert not terminated
        return steps

    assert length("SafetyPointCircle1-v0") == 500
    assert length("SafetyPointGoal1-v0") == 1000
    assert length("SafetyPointGoal1-v0", max_episode_steps=7) == 7
    # Also beyond the task's own count, on which the package would truncate all the same.
    assert length("SafetyPointCircle1-v0", max_episode_steps=510) == 510
    assert length("SafetyHalfCheetahVelocity-v1", max_episode_steps=5) == 5


def test_config_entries_are_added_to_the_task_s_own():
    env = safety.make_safety_gymnasium("SafetyPointRace1-v0", config={"floor_conf.type": "mat"})
    env.reset(seed=0)
    assert env.unwrapped.task.floor_conf.type == "mat"
    assert env.unwrapped.task.agent_name == "Point"
    again = safety.make_safety_gymnasium("SafetyPointRace1-v0")
    assert again.unwrapped.task.floor_conf.type == "village"


@pytest.mark.parametrize(
    "env_id", ["SafetyPointGoal11-v0", "SafetyPointGaol1-v0", "SafetyPointGoal1-v1", "PointGoal1"]
)
def test_unknown_id_suggests_the_nearest(env_id):
    with pytest.raises(gymnasium.error.NameNotFound, match=r"did you mean .*SafetyPointGoal1-v0"):
        safety.make_safety_gymnasium(env_id)


def test_unknown_id_far_from_any():
    with pytest.raises(gymnasium.error.NameNotFound, match="safety_gymnasium_ids"):
        safety.make_safety_gymnasium("xyz")


@pytest.mark.parametrize(
    "env_id", ["Safety2x4AntVelocity-v0", "SafetyPointMultiGoal1-v0", "Safety2x3HalfCheetahVelocity-v0"]
)
def test_multi_agent_ids_are_refused(env_id):
    with pytest.raises(ValueError, match="multi-agent"):
        safety.make_safety_gymnasium(env_id)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"max_episode_steps is 0; it must be at least 1"):
        safety.make_safety_gymnasium("SafetyPointGoal1-v0", max_episode_steps=0)
    with pytest.raises(ValueError, match=r"render_mode is 'film'; it must be one of .*rgb_array"):
        safety.make_safety_gymnasium("SafetyPointGoal1-v0", render_mode="film")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        safety.make_safety_gymnasium("SafetyPointGoal1-v0", colour="red")


@pytest.mark.parametrize("fast", [True, False])
def test_bad_actions(fast):
    with safety.plain_textures():
        env = safety.make_safety_gymnasium("SafetyPointGoal1-v0", fast=fast, max_episode_steps=2)
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step([0.0, 0.0])
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"shape \(3,\); it must have \(2,\)"):
            env.step(np.zeros(3))
        with pytest.raises(ValueError, match="must be finite"):
            env.step([np.nan, 0.0])
        env.step([0.5, 0.5])  # a list is as good as an array
        assert env.step(np.float32([9.0, -9.0]))[4]
        np.testing.assert_array_equal(env.unwrapped.task.data.ctrl, [1.0, -1.0])
        with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
            env.step([0.0, 0.0])


def test_missing_package_names_the_command(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=r"pip install --no-deps safety-gymnasium==1\.0\.0"):
        compat._find()


def test_other_version_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.0")
    with pytest.raises(ImportError, match=r"1\.2\.0 is installed, but only 1\.0\.0 .*pip install --no-deps"):
        compat._find()


def test_load_returns_one_module_whose_make_points_to_ours():
    package = safety.load_safety_gymnasium()
    assert package is safety.load_safety_gymnasium() is sys.modules["safety_gymnasium"]
    with pytest.raises(NotImplementedError, match=r"; use .*make_safety_gymnasium"):
        package.make("SafetyPointGoal1-v0")
    with pytest.raises(NotImplementedError, match="not supported with gymnasium"):
        package.vector.make("SafetyPointGoal1-v0")


def test_nothing_outside_of_the_package_stays_patched():
    done = in_new_process("""
        import sys, types
        import gymnasium, mujoco, numpy, xmltodict, yaml
        from gymnasium.envs.mujoco.mujoco_rendering import WindowViewer

        def names():
            return {
                (name, key): id(value)
                for name, module in sys.modules.items()
                if name.partition(".")[0] in ("gymnasium", "mujoco", "numpy", "xmltodict", "yaml", "builtins")
                for key, value in vars(module).items()
                if isinstance(value, (types.FunctionType, type, types.ModuleType))
            }

        def methods():
            return {
                (cls, key): id(value)
                for cls in (gymnasium.Env, gymnasium.Wrapper, gymnasium.wrappers.TimeLimit,
                            WindowViewer, mujoco.MjModel, mujoco.MjData)
                for key, value in vars(cls).items()
            }

        before, methods_before, modules = names(), methods(), set(sys.modules)
        env = safety.make_safety_gymnasium("SafetyPointGoal1-v0")
        env.reset(seed=0); env.step(env.action_space.sample()); env.reset()
        after = names()
        changed = [key for key in before if after.get(key) != before[key]]
        assert not changed, changed
        assert methods() == methods_before
        for name in ("autoreset", "compatibility", "env_checker", "normalize", "time_limit"):
            assert f"gymnasium.wrappers.{name}" not in set(sys.modules) - modules
        try:
            import gymnasium.wrappers.time_limit
        except ModuleNotFoundError:
            print("untouched")
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "untouched"


def test_loads_after_a_failed_import():
    done = in_new_process("""
        try:
            import safety_gymnasium
        except ImportError:  # as the wheel does on a current gymnasium
            pass
        print(safety.make_safety_gymnasium("SafetyPointGoal1-v0").reset(seed=0)[0].shape)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(60,)"


RENDER = """
    import numpy as np
    import mujoco
    try:
        mujoco.GLContext(8, 8).free()
    except Exception as error:  # whatever this machine lacks
        print("no OpenGL:", type(error).__name__, error)
        raise SystemExit
    frames = []
    for fast in (True, False):
        view = {"render_mode": "rgb_array", "camera_name": "track", "width": 64, "height": 48}
        env = safety.make_safety_gymnasium("SafetyPointGoal1-v0", fast=fast, **view)
        env.reset(seed=1)
        frames.append([env.render()])
        env.step(env.action_space.high)
        env.reset()
        frames[-1].append(env.render())
        env.close()
    for fast, own in zip(*frames):
        assert fast.shape == (48, 64, 3) and fast.std() > 10, fast.std()
        # From MuJoCo 4 on the light's place is that of the first world: a level or two of brightness.
        slack = 0 if mujoco.mj_version() < 400 else 2
        np.testing.assert_allclose(fast.astype(int), own.astype(int), rtol=0, atol=slack)
    env = safety.make_safety_gymnasium("SafetyPointGoal1Vision-v0")
    vision = env.reset(seed=1)[0]["vision"]
    assert vision.shape == (256, 256, 3) and vision.std() > 10
    env.close()
    print("rendered")
"""


def test_rendering_shows_the_same_images_as_the_own_code():
    done = in_new_process(RENDER, MUJOCO_GL="egl", LP_NUM_THREADS="1")
    if done.stdout.startswith("no OpenGL:") or ("egl" in done.stderr.lower() and done.returncode):
        pytest.skip(f"MuJoCo cannot render here with EGL: {done.stdout or done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    assert "rendered" in done.stdout


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "egl"), ({"DISPLAY": ":0"}, None), ({"MUJOCO_GL": "osmesa"}, "osmesa")],
)
def test_tasks_that_draw_choose_egl_without_a_screen(environment, expected, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    safety.make_safety_gymnasium("SafetyPointGoal1-v0")
    assert os.environ.get("MUJOCO_GL") == environment.get("MUJOCO_GL")
    safety.make_safety_gymnasium("SafetyPointGoal1Vision-v0")
    assert os.environ.get("MUJOCO_GL") == expected


def test_the_package_can_be_imported_by_its_name():
    done = in_new_process("""
        import safety_gymnasium.wrappers
        from safety_gymnasium.wrappers import SafeNormalizeReward
        print(safety.load_safety_gymnasium() is safety_gymnasium, SafeNormalizeReward.__name__)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True SafeNormalizeReward"


@pytest.mark.parametrize("name", ["SafeNormalizeObservation", "SafeNormalizeReward", "SafeNormalizeCost"])
def test_wrappers_that_normalize(name):
    wrappers = safety.load_safety_gymnasium().wrappers
    plain = safety.make_safety_gymnasium("SafetyHalfCheetahVelocity-v1")
    env = getattr(wrappers, name)(safety.make_safety_gymnasium("SafetyHalfCheetahVelocity-v1"))
    observations, rewards, costs = [plain.reset(seed=0)[0]], [], []
    scaled = [env.reset(seed=0)[0]]
    random = np.random.RandomState(0)
    for _ in range(50):
        action = random.uniform(-1, 1, 6)
        observation, reward, cost, *_ = plain.step(action)
        observations.append(observation)
        rewards.append(reward)
        costs.append(cost)
        last = env.step(action)
        scaled.append(last[0])
    if name == "SafeNormalizeObservation":
        x = np.array(observations)  # the statistics start from a count of 1e-4 with mean 0 and variance 1
        mean = x.sum(0) / (len(x) + 1e-4)
        var = ((x**2).sum(0) + 1e-4) / (len(x) + 1e-4) - mean**2
        np.testing.assert_allclose(last[0], (x[-1] - mean) / np.sqrt(var + 1e-8), rtol=1e-4, atol=1e-6)
        return
    np.testing.assert_array_equal(scaled, observations)
    values = rewards if name == "SafeNormalizeReward" else costs
    returns = [0.0]
    for value in values:
        returns.append(0.99 * returns[-1] + value)
    x, n = np.array(returns[1:]), len(values)
    mean = x.sum() / (n + 1e-4)
    var = ((x**2).sum() + 1e-4) / (n + 1e-4) - mean**2
    expected = values[-1] / np.sqrt(var + 1e-8)
    np.testing.assert_allclose(last[1 if name == "SafeNormalizeReward" else 2], expected, rtol=1e-4)


def test_an_observation_is_normalized_at_the_end_of_an_episode_that_resets_itself():
    wrappers = safety.load_safety_gymnasium().wrappers
    task = safety.make_safety_gymnasium("SafetyHalfCheetahVelocity-v1", max_episode_steps=2)
    env = wrappers.SafeNormalizeObservation(wrappers.SafeAutoResetWrapper(task))
    env.reset(seed=0)
    env.step(np.zeros(6))
    *_, truncated, info = env.step(np.zeros(6))
    assert truncated
    assert info["final_observation"].shape == env.obs_rms.mean.shape == (17,)
    assert env.obs_rms.count == pytest.approx(4 + 1e-4)  # each observation counts as one
