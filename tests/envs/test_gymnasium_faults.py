"""What environments return, raise or never return: taken as meant, or refused by name."""

import functools
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from cost_envs import Corridor, SixValues
from gymnasium import spaces
from tensordict import TensorDict

from safe_components.envs import EnvironmentFailure, GymnasiumBatch, step_timeout
from safe_components.envs.gymnasium_spaces import ObservationReader


class Faulty(Corridor):
    """A corridor whose third step, or whose second reset, is replaced by what ``fault`` makes of it."""

    def __init__(self, fault, where="step", at=3):
        super().__init__(start=0.0)
        self.fault, self.where, self.at, self.resets = fault, where, at, 0

    def reset(self, **options):
        result = super().reset(**options)
        self.resets += 1
        return self.fault(result) if self.where == "reset" and self.resets == self.at else result

    def step(self, action):
        result = super().step(action)
        return self.fault(result) if self.where == "step" and self.t == self.at else result


def replaced(i, value):
    return lambda result: (*result[:i], value, *result[i + 1 :])


def batch(fault, where="step", at=3, **options):
    """Two copies, of which the second one has the fault."""
    copies = iter([Faulty(lambda result: result), Faulty(fault, where, at)])
    return GymnasiumBatch(lambda: next(copies), num_envs=2, seed=0, **options)


WHERE = r"environment 1 of 2 at step 3 of its episode \(Faulty"
STEPS = {
    "four values": (lambda r: (r[0], r[1], r[2], r[4]), r"step\(\) returned 4 values; .*old gym package"),
    "six values": (lambda r: (*r[:2], 0.0, *r[2:]), r"step\(\) returned 6 values; its first step returned 5"),
    "None": (lambda r: None, r"step\(\) returned None \(NoneType\)"),
    "an array": (lambda r: r[0], r"step\(\) returned array"),
    "no observation": (replaced(0, None), r"observation is None \(NoneType\), must be real numbers"),
    "a short observation": (replaced(0, np.zeros(1)), r"observation has shape \(1,\), must have \(2,\)"),
    "a row": (replaced(0, np.zeros((1, 2))), r"observation has shape \(1, 2\), must have \(2,\)"),
    "a number": (replaced(0, 1.5), r"observation has shape \(\), must have \(2,\)"),
    "text": (replaced(0, ["1", "2"]), r"observation is \['1', '2'\] \(list\), must be real numbers"),
    "complex numbers": (replaced(0, np.zeros(2, complex)), r"observation is array.*must be real numbers"),
    "a ragged list": (replaced(0, [[1.0], 2.0]), r"observation is .*must be real numbers of one shape"),
    "no reward": (replaced(1, None), r"reward is None \(NoneType\), must be a real number"),
    "two rewards": (replaced(1, [1.0, 2.0]), r"reward is \[1.0, 2.0\] \(list\), must be a real number"),
    "a flag that is a number": (replaced(2, 0.5), r"terminated is 0.5 \(float\), must be a bool"),
    "no flag": (replaced(3, None), r"truncated is None \(NoneType\), must be a bool"),
    "no info": (replaced(4, None), r"info is None \(NoneType\), must be a dictionary"),
    "no cost": (replaced(4, {"speed": 1.0}), r"cost 'cost' is missing from info, which holds \['speed'\]"),
    "cost None": (replaced(4, {"cost": None}), r"cost is None \(NoneType\), must be real numbers"),
    "two costs": (replaced(4, {"cost": [0.0, 1.0]}), r"cost is \[0.0, 1.0\], which has 2 numbers"),
    "a negative cost": (replaced(4, {"cost": -0.5}), "cost is -0.5 in"),
}


@pytest.mark.parametrize("frame_skip", [1, 3])
@pytest.mark.parametrize("fault", STEPS)
def test_a_step_that_returns_something_else_is_refused_by_name(fault, frame_skip):
    change, message = STEPS[fault]
    env = batch(change, frame_skip=frame_skip)
    with pytest.raises(ValueError, match=f"{message}.*{WHERE}"):
        env.rollout(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[0], r"reset\(\) returned array\(\[.*must return \(observation, info\)"),
        (lambda r: [3, 7], r"reset\(\) returned \[3, 7\]"),
        (lambda r: None, r"reset\(\) returned None"),
        (replaced(0, np.zeros(1)), r"observation has shape \(1,\)"),
        (replaced(0, None), "observation is None"),
    ],
)
def test_a_reset_that_returns_something_else_is_refused_by_name(change, message):
    env = batch(change, "reset", 2)
    env.reset()
    with pytest.raises(ValueError, match=message + r".*environment 1 of 2 at step 0 of its episode \(Faulty"):
        env.reset()


@pytest.mark.parametrize("kind", ["step", "reset"])
def test_the_trial_step_refuses_as_well(kind):
    with pytest.raises(
        ValueError, match=rf"{kind}\(\) returned None .*environment 0 of 1 at step .* \(Faulty"
    ):
        GymnasiumBatch(lambda: Faulty(lambda r: None, kind, 1))


@pytest.mark.parametrize(
    "value", [3, np.float64(3), np.array(3.0), np.array([3.0]), [3.0], torch.tensor([3.0])]
)
def test_arrays_of_one_element_are_numbers(value):
    env = batch(lambda r: (r[0], value, np.array([False]), np.bool_(False), {"cost": value}))
    steps = env.rollout(3)["next"]
    assert steps["reward"][1, -1].tolist() == steps["cost"][1, -1].tolist() == [3.0]
    assert not steps["done"].any()


def test_a_tensor_with_a_gradient_is_a_number():
    steps = batch(replaced(1, torch.ones(1, requires_grad=True))).rollout(3)["next"]
    assert steps["reward"][1, -1].item() == 1.0


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), SystemExit(3), FloatingPointError("odd")])
@pytest.mark.parametrize("where", ["step", "reset"])
def test_an_environment_that_raises_is_named_and_the_cause_kept(error, where):
    def fail(result):
        raise error

    env = batch(fail, where, 3 if where == "step" else 2)
    env.reset()
    at = 3 if where == "step" else 0
    message = rf"{where}\(\) of environment 1 of 2 at step {at} of its episode \(Faulty\) raised "
    with pytest.raises(
        EnvironmentFailure, match=message + rf"{type(error).__name__}: .*test_gymnasium_faults"
    ) as caught:
        env.rollout(4)
    assert caught.value.__cause__ is error
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_ctrl_c_passes_through():
    def interrupt(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch(interrupt).rollout(4)


@pytest.mark.parametrize("frame_skip", [1, 2])
def test_an_environment_that_hangs_is_interrupted_and_named(frame_skip):
    def swallow(result):
        while True:
            try:
                time.sleep(60)
            except Exception:  # what a careless environment does
                continue

    env = batch(swallow, step_timeout=0.2, frame_skip=frame_skip)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"step\(\) of {WHERE}\) did not return within 0.2 s"):
        env.rollout(4)
    assert time.monotonic() - begin < 5


def test_many_slow_copies_do_not_hang():
    class Slow(Corridor):
        def step(self, action):
            time.sleep(0.05)
            return super().step(action)

    env = GymnasiumBatch(Slow, num_envs=6, step_timeout=0.1)
    assert env.rollout(2).shape == (6, 2)


def test_the_timer_does_not_end_a_process_that_exits_slowly():
    file = Path(step_timeout.__file__)
    program = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("alone", {str(file)!r})
alone = importlib.util.module_from_spec(spec)
spec.loader.exec_module(alone)

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

slow = Slow()
with alone.Watched(0.1) as results:
    results.append(1)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


class Counter(gymnasium.Env):
    """Counts to 3, and then resets itself; ``style`` says where its last observation goes."""

    final_info = True

    observation_space = spaces.Box(-9, 9, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, style, six=False):
        self.style, self.six = style, six

    def reset(self, *, seed=None, options=None):
        self.n = 0
        return np.zeros(1), {}

    def step(self, action):
        self.n += 1
        done, last, info = self.n == 3, np.full(1, self.n), {"cost": self.n}
        if done:
            last, info = self.reset()[0], {self.style: last, "final_info": info, "cost": info["cost"]}
            if not self.final_info:
                info["final_info"] = None
        cost = (3 if done else self.n,) if self.six else ()
        return last, 1.0, *cost, done, False, info


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("style", ["final_obs", "final_observation"])
@pytest.mark.parametrize("frame_skip", [1, 3])
def test_the_last_observation_of_an_environment_that_resets_itself(style, six, frame_skip):
    env = GymnasiumBatch(lambda: Counter(style, six), num_envs=2, frame_skip=frame_skip)
    steps = env.rollout(6 // frame_skip, break_when_any_done=False)
    counted, costs = ([1, 2, 3] * 2, [1, 2, 3] * 2) if frame_skip == 1 else ([3, 3], [6, 6])
    for copy in range(2):
        assert steps["next", "observation"][copy].flatten().tolist() == counted
        assert steps["next", "cost"][copy].flatten().tolist() == costs
    assert (steps["observation"][:, 0] == 0).all()


def test_the_info_of_the_last_step_may_have_no_place_of_its_own():
    bare = type("Bare", (Counter,), {"final_info": False})
    steps = GymnasiumBatch(lambda: bare("final_obs")).rollout(6, break_when_any_done=False)["next"]
    assert steps["observation"].flatten().tolist() == steps["cost"].flatten().tolist() == [1, 2, 3] * 2


def test_vector_environments_are_refused():
    with pytest.raises(ValueError, match="returned a vector environment"):
        GymnasiumBatch(lambda: gymnasium.make_vec("CartPole-v1", num_envs=2))
    with pytest.raises(ValueError, match="make returned None"):
        GymnasiumBatch(lambda: None)


def box(low, high, dtype=np.float32):
    space = spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
    return type(
        "Boxed",
        (Corridor,),
        {"action_space": space, "step": lambda self, a: Corridor.step(self, np.float32([0]))},
    )


@pytest.mark.parametrize(
    ("low", "high", "dimension"),
    [
        ([-np.inf], [np.inf], 0),
        ([-1, -np.inf], [1, 1], 1),
        ([-1, 0], [1, np.inf], 1),
        ([-3e38], [3e38], 0),
        ([-1e30], [1e30], 0),
        ([0, 1e-30], [1, 2e-30], 1),
        ([0, 1], [1, 1], 1),
    ],
)
def test_action_bounds_that_policies_cannot_use_are_refused_by_dimension(low, high, dimension):
    with pytest.raises(
        ValueError, match=rf"Boxed: dimension {dimension} of the action space ranges from .*TransformAction"
    ):
        GymnasiumBatch(box(low, high))


@pytest.mark.parametrize("what", ["action", "observation"])
def test_spaces_without_a_number_are_refused(what):
    empty = type("Empty", (Corridor,), {f"{what}_space": spaces.Box(0, 1, (0,))})
    with pytest.raises(ValueError, match=rf"Empty: {what} space .* is empty"):
        GymnasiumBatch(empty)


def test_bounds_beyond_float32():
    with pytest.raises(ValueError, match="dimension 0 of the action space"):
        GymnasiumBatch(box([-1e300], [1e300], np.float64))


def test_actions_of_an_integer_box_are_rounded():
    taken = []

    class Whole(box([0, -2], [3, 2], np.int64)):
        def step(self, action):
            taken.append(action)
            return super().step(action)

    env = GymnasiumBatch(Whole)
    env.rollout(1, lambda td: td.set("action", torch.tensor([0.9, -1.6])))
    assert taken[-1].dtype == np.int64
    assert taken[-1].tolist() == [1, -2]


def test_an_action_of_another_shape_is_refused():
    env = GymnasiumBatch(Corridor, num_envs=2)
    env.reset()
    with pytest.raises(ValueError, match=r"Corridor: action has shape \(2, 2\), must have \(2, 1\)"):
        env._step(env.full_action_spec.zero().set("action", torch.zeros(2, 2)))


def test_copies_with_other_spaces_are_refused():
    copies = iter([Corridor, box([-1, -1], [1, 1])])
    with pytest.raises(ValueError, match="the action_space of environment 1 is"):
        GymnasiumBatch(lambda: next(copies)(), num_envs=2)


@pytest.mark.parametrize(
    ("space", "x", "message"),
    [
        (spaces.Box(0, 1, (2, 3)), np.zeros((3, 2)), r"observation has shape \(3, 2\), must have \(2, 3\)"),
        (spaces.Discrete(3), -1, "observation is -1 .*not in Discrete"),
        (spaces.MultiBinary(2), [0, 2], "not in MultiBinary"),
        (spaces.Dict(a=spaces.Discrete(2)), {"b": 1}, r"must be a dictionary with the keys \['a'\]"),
        (spaces.Dict(a=spaces.Box(0, 1, (2,))), {"a": [1]}, r"observation\['a'\] has shape \(1,\)"),
        (spaces.Tuple([spaces.Discrete(2)]), (1, 1), "must be a tuple of 1"),
        (spaces.Tuple([spaces.Box(0, 1, (1,))]), (None,), r"observation\[0\] is None"),
    ],
)
def test_observations_must_have_the_structure_of_their_space(space, x, message):
    with pytest.raises(ValueError, match=message):
        ObservationReader(space)(x)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (2, 3)),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Dict(
            a=spaces.Box(0, 1, (2,)), b=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary((2, 2))])
        ),
    ],
)
def test_observations_are_flattened_as_gymnasium_does(space):
    read = ObservationReader(space)
    space.seed(0)
    for _ in range(5):
        x = space.sample()
        np.testing.assert_array_equal(read(x), spaces.flatten(space, x))
    assert read.size == spaces.flatdim(space)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_reset_with_a_seed_is_set_seed_and_reset(num_envs):
    one, two = (GymnasiumBatch(Corridor, num_envs=num_envs, seed=k) for k in range(2))
    one.set_seed(3)
    expected = [one.reset()["observation"], one.reset()["observation"]]
    found = [two.reset(seed=3)["observation"], two.reset()["observation"]]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
            one.reset(seed=wrong)
    with pytest.raises(ValueError, match=r"seed must be below 2\*\*63"):
        one.reset(seed=2**63)


def test_options_of_reset_reach_the_environment():
    class Placed(Corridor):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = (options or {}).get("x", 0.0)
            return self.observe(), {}

    env = GymnasiumBatch(Placed, num_envs=2)
    assert env.reset(options={"x": 2.5})["observation"][:, 0].tolist() == [2.5, 2.5]


class Dice(Corridor):
    """Draws from NumPy's and Python's global generators, as bullet-safety-gym does."""

    def observe(self):
        return np.array([np.random.rand(), random.random()])


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_seed_determines_draws_from_the_global_generators(num_envs):
    env = GymnasiumBatch(Dice, num_envs=num_envs, seed=5)
    torch.manual_seed(0)
    first = env.rollout(4)["next", "observation"]
    np.random.rand()
    torch.manual_seed(0)
    second = GymnasiumBatch(Dice, num_envs=num_envs, seed=5).rollout(4)["next", "observation"]
    assert torch.equal(first, second)
    env.set_seed(6)
    assert not torch.equal(env.rollout(4)["next", "observation"], first)


def test_a_wrapper_for_five_values_around_six_explains_itself():
    with pytest.raises(EnvironmentFailure, match=r"values to unpack.*SafetyGymnasium2Gymnasium"):
        GymnasiumBatch(functools.partial(gymnasium.wrappers.TimeLimit, SixValues(), 5))


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Mute(), r"raised Mute: \(no message\) \("),
        (
            RuntimeError("OpenGL platform library\n not loaded"),
            r"OpenGL platform library not loaded.*MUJOCO_GL=egl",
        ),
    ],
)
def test_errors_are_summed_up_in_one_line(error, text):
    def fail(result):
        raise error

    with pytest.raises(EnvironmentFailure, match=text) as caught:
        batch(fail).rollout(4)
    assert "\n" not in str(caught.value)


def test_a_partial_reset_cannot_come_first():
    env = GymnasiumBatch(Corridor, num_envs=2)
    chosen = TensorDict({"_reset": torch.tensor([[True], [False]])}, [2])
    with pytest.raises(RuntimeError, match="the first reset must reset every environment"):
        env.reset(chosen)


def test_an_empty_cost_is_refused():
    empty = functools.partial(Corridor, cost=lambda x: [])
    with pytest.raises(ValueError, match="Corridor reports an empty cost"):
        GymnasiumBatch(empty)
