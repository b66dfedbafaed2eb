"""The fast path gives the numbers of the package's own code, bit for bit."""

from __future__ import annotations

import math
import types

import mujoco
import numpy as np
import pytest
import safety_gymnasium_alone  # noqa: F401  # without torch, it makes the next lines work

from safe_components.envs import safety_gymnasium as safety
from safe_components.envs.safety_gymnasium.fast import task as fast_task
from safe_components.envs.safety_gymnasium.fast.lidar import lidar
from safe_components.envs.safety_gymnasium.fast.world import WorldTemplate, differences

AGENTS = ("Point", "Car", "Doggo", "Racecar", "Ant")
# Level 2 has every kind of object of its family; Goal1 and Push1 have some without a cost.
FAMILIES = ("Goal2", "Button2", "Push2", "Circle2", "Run0", "Race2", "FadingEasy1", "FadingHard2")
ONE_AGENT = ("Goal0", "Goal1", "Button0", "Button1", "Push0", "Push1", "Circle0", "Circle1", "Race0", "Race1")
NAVIGATION = [f"Safety{agent}{family}-v0" for family in FAMILIES for agent in AGENTS]
NAVIGATION += [f"SafetyPoint{family}-v0" for family in ONE_AGENT]


def put_agent(task, xy) -> None:
    """Put the agent's base at a place, whichever joints it has."""
    body = task.model.body("agent")
    joint = int(body.jntadr[0])
    start = int(task.model.jnt_qposadr[joint])
    if task.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
        task.data.qpos[start : start + 2] = xy
    else:  # the point slides from where its body was put, along the axes that the body had there
        axes = np.empty(9)
        mujoco.mju_quat2Mat(axes, np.array(body.quat))
        away = np.append(np.asarray(xy) - body.pos[:2], 0.0)
        task.data.qpos[start : start + 2] = (away @ axes.reshape(3, 3))[:2]


def targets(task) -> list[np.ndarray]:
    """One place at each kind of object, the goal last: what is met there happens in the comparison."""
    names = ("hazard0", "vase1", "pillar0", "push_box", "gremlin1obj", "button2", "sigwall0", "goal")
    known = {task.model.body(i).name for i in range(task.model.nbody)}
    return [task.data.body(name).xpos[:2] + 0.03 for name in names if name in known]


def play(env_id: str, fast: bool, steps: int = 6, prepare=None) -> list[np.ndarray]:
    """Everything two episodes and the objects met in them return, as a list of float arrays."""
    with safety.plain_textures():
        env = safety.make_safety_gymnasium(env_id, fast=fast)
        if prepare is not None:
            prepare(env.unwrapped.task)
        random = np.random.RandomState(1)
        low, high = env.action_space.low.astype(float), env.action_space.high.astype(float)
        seen = []

        def reset(**seed):
            seen.append(env.reset(**seed)[0])

        def step():
            observation, reward, cost, terminated, truncated, info = env.step(random.uniform(low, high))
            costs = [float(value) for _, value in sorted(info.items())]
            seen.extend([observation, np.array([reward, cost, terminated, truncated, *costs], dtype=float)])
            if terminated or truncated:
                reset()

        reset(seed=5)
        for _ in range(2):
            for _ in range(steps):
                step()
            task = env.unwrapped.task
            for xy in targets(task):
                put_agent(task, xy)
                step()
                step()
            reset()
        env.close()
    return seen


@pytest.mark.parametrize("env_id", NAVIGATION)
def test_same_numbers_as_the_own_code(env_id):
    own, fast = play(env_id, fast=False), play(env_id, fast=True)
    assert len(own) == len(fast)
    for k, (expected, value) in enumerate(zip(own, fast, strict=True)):
        np.testing.assert_array_equal(value, expected, err_msg=f"row {k}")


def with_noise(task):
    task.action_noise = 0.3


def with_a_compass(task):
    task.goal.is_comp_observed = True
    task.build_observation_space()


def with_a_natural_lidar(task):
    task.lidar_conf.type = "natural"
    task.build_observation_space()


def with_displacement_costs(task):
    task.vases.displace_cost = 0.5


def without_hazard_costs(task):
    task.hazards.is_constrained = False


def without_vase_costs(task):
    task.vases.is_constrained = False
    task.lidar_conf.alias = False


@pytest.mark.parametrize(
    "prepare", [with_a_compass, with_a_natural_lidar, without_hazard_costs, without_vase_costs]
)
def test_same_numbers_with_settings_that_no_task_has(prepare):
    own, fast = (play("SafetyPointGoal2-v0", fast=fast, prepare=prepare) for fast in (False, True))
    assert len(own) == len(fast)
    for k, (expected, value) in enumerate(zip(own, fast, strict=True)):
        np.testing.assert_array_equal(value, expected, err_msg=f"row {k}")


@pytest.mark.parametrize(
    ("prepare", "error"), [(with_noise, ValueError), (with_displacement_costs, AttributeError)]
)
@pytest.mark.parametrize("fast", [False, True])
def test_settings_that_fail_in_the_own_code_fail_alike(prepare, error, fast):
    with pytest.raises(error, match="truth value" if error is ValueError else "'Vases' object has no"):
        play("SafetyPointGoal2-v0", fast=fast, prepare=prepare)


@pytest.mark.parametrize("fast", [False, True])
def test_an_agent_that_is_not_alive_and_a_goal_without_room_end_the_episode(fast, monkeypatch):
    from safety_gymnasium.utils.common_utils import ResamplingError  # after it was adapted

    env = safety.make_safety_gymnasium("SafetyPointGoal1-v0", fast=fast)
    task = env.unwrapped.task

    def no_room():
        raise ResamplingError("no room for a goal")

    def at_the_goal():
        """The step in which the agent has reached its goal."""
        env.reset(seed=0)
        put_agent(task, task.goal.pos[:2])
        with monkeypatch.context() as patch:
            patch.setattr(task, "update_world", no_room)
            return env.step(np.zeros(2))

    env.reset(seed=0)
    assert not env.step(np.zeros(2))[3]
    with monkeypatch.context() as patch:
        patch.setattr(task.agent, "is_alive", lambda: False)
        assert env.step(np.zeros(2))[3]
    *_, terminated, truncated, info = at_the_goal()
    assert (terminated, truncated, info["goal_met"]) == (True, False, True)
    task.mechanism_conf.terminate_resample_failure = False
    with pytest.raises(ResamplingError):
        at_the_goal()
    task.mechanism_conf.continue_goal = False
    assert at_the_goal()[3]


def test_comparison_meets_costs_and_goals():
    """The comparison above would be empty if nothing were met in it."""
    with safety.plain_textures():
        env = safety.make_safety_gymnasium("SafetyPointGoal2-v0")
        env.reset(seed=5)
        met = set()
        for xy in targets(env.unwrapped.task):
            put_agent(env.unwrapped.task, xy)
            *_, info = env.step(np.zeros(2))
            met |= {key for key, value in info.items() if value}
    assert {"cost_hazards", "cost_vases_contact", "cost_vases_velocity", "goal_met"} <= met


@pytest.mark.parametrize("env_id", ["SafetyPointGoal2-v0", "SafetyAntButton2-v0", "SafetyRacecarRace2-v0"])
def test_moved_world_equals_compiled_world(env_id):
    env = safety.make_safety_gymnasium(env_id)
    env.reset(seed=0)
    task = env.unwrapped.task
    for seed in range(3):
        env.reset(seed=seed)
        task.random_generator.set_random_seed(seed)
        task.world_info.layout = task.random_generator.build_layout()
        assert task._compare(task._build_world_config(task.world_info.layout)) == []


def test_every_kind_of_world_could_be_moved():
    """No task fell back to compiling in the tests above, on this MuJoCo."""
    for env_id in ("SafetyCarGoal1-v0", "SafetyDoggoButton1-v0"):
        env = safety.make_safety_gymnasium(env_id)
        env.reset(seed=0)
        env.reset()
    assert len(fast_task._MOVABLE) >= 2
    assert min(fast_task._MOVABLE.values()) > 0


def test_differences_names_what_differs():
    xml = "<mujoco><worldbody><body pos='{} 0 0'><geom name='a' size='1'/></body></worldbody></mujoco>"
    one, two = (mujoco.MjModel.from_xml_string(xml.format(x)) for x in (0, 1))
    assert differences(one, one) == []
    assert "body_pos" in differences(one, two)


def test_compiles_where_moving_does_not_suffice(monkeypatch):
    expected = play("SafetyPointGoal1-v0", fast=True)
    monkeypatch.setattr(fast_task, "_MOVABLE", {})
    monkeypatch.setattr(fast_task, "differences", lambda model, other: ["body_pos"])
    with pytest.warns(RuntimeWarning, match="compiles GoalLevel1 for Point to other values of body_pos"):
        found = play("SafetyPointGoal1-v0", fast=True)
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, other)


def test_reset_undoes_changes_to_the_model():
    env = safety.make_safety_gymnasium("SafetyPointGoal1-v0")
    env.reset(seed=3)
    first = env.reset(seed=3)[0]
    model = env.unwrapped.task.model
    model.geom_friction[:] = 0.0
    model.body_pos[1:] += 1.0
    model.opt.timestep = 0.1
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    assert model.opt.timestep == 0.002
    assert (model.geom_friction[:, 0] > 0).any()


def test_world_template_keeps_options_and_track_camera():
    env = safety.make_safety_gymnasium("SafetyPointGoal1-v0")
    env.reset(seed=0)
    task = env.unwrapped.task
    assert isinstance(task._template, WorldTemplate)
    camera = task.model.camera("track")
    # It looks at the agent from 2 behind and 2 above: its viewing axis -z points forward and down.
    axis = np.empty(9)
    mujoco.mju_quat2Mat(axis, np.array(camera.quat))
    down = -axis.reshape(3, 3)[:, 2]
    np.testing.assert_allclose(np.hypot(*camera.pos[:2]), 2.0, rtol=1e-12)
    np.testing.assert_allclose(down[2], -math.sqrt(0.5), rtol=1e-12)


@pytest.mark.parametrize(("angle", "distance"), [(0.3, 1.0), (2.0, 2.9), (-1.0, 0.2), (3.1, 3.5)])
def test_lidar_of_one_object_in_closed_form(angle, distance):
    conf = types.SimpleNamespace(num_bins=16, max_dist=3.0, exp_gain=1.0, alias=True)
    heading = 0.7
    turn = np.array(
        [[math.cos(heading), -math.sin(heading), 0], [math.sin(heading), math.cos(heading), 0], [0, 0, 1]]
    )
    agent = np.array([0.5, -0.25, 0.1])
    bearing = heading + angle
    place = np.array(
        [[agent[0] + distance * math.cos(bearing), agent[1] + distance * math.sin(bearing), 9.0]]
    )
    (found,) = lidar(place, [1], agent, turn, conf)

    size, expected = 2 * math.pi / 16, np.zeros(16)
    strength = max(0.0, 3.0 - distance) / 3.0
    k, share = divmod(angle % (2 * math.pi), size)
    expected[int(k)] = strength
    expected[(int(k) + 1) % 16] = strength * share / size
    expected[int(k) - 1] = strength * (1 - share / size)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_lidar_without_maximal_distance_and_behind_rounding():
    conf = types.SimpleNamespace(num_bins=4, max_dist=None, exp_gain=2.0, alias=False)
    # An angle of -1e-20 is 2π modulo 2π: the first bin, not one beyond the last.
    (found,) = lidar(np.array([[1.0, -1e-20, 0.0]]), [1], np.zeros(3), np.eye(3), conf)
    np.testing.assert_allclose(found, [math.exp(-2.0), 0, 0, 0], rtol=1e-15)


def test_layouts_keep_the_objects_apart():
    env = safety.make_safety_gymnasium("SafetyCarButton2-v0")
    for seed in range(5):
        env.reset(seed=seed)
        task = env.unwrapped.task
        placed = [
            (xy, task.placements_conf.placements[name][1]) for name, xy in task.world_info.layout.items()
        ]
        for i, (xy, keepout) in enumerate(placed):
            for other, other_keepout in placed[:i]:
                assert np.linalg.norm(xy - other) >= keepout + other_keepout - 1e-12


def test_own_and_fast_live_side_by_side():
    own = safety.make_safety_gymnasium("SafetyPointGoal1-v0", fast=False)
    fast = safety.make_safety_gymnasium("SafetyPointGoal1-v0", fast=True)
    assert type(own.unwrapped).__module__ == type(fast.unwrapped).__module__ == "safety_gymnasium.builder"
    assert isinstance(fast.unwrapped, type(own.unwrapped))
    assert not isinstance(own.unwrapped, type(fast.unwrapped))
    assert not hasattr(own.unwrapped.task, "_settled")
