"""The state of an environment: saved, restored in another one, and continued bit for bit."""

import functools
import random
import types
from collections import deque, namedtuple

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from safe_components.envs import StateError, make_env
from safe_components.envs.base import ConstrainedEnv
from safe_components.envs.gymnasium_batch import GymnasiumBatch
from safe_components.envs.object_state import read_object, write_object
from safe_components.training import read_state, write_state


def courses(env, step, actions):
    """Everything that the steps return, and the step that comes next."""
    rows = []
    for action in actions:
        done, step = env.step_and_maybe_reset(step.set("action", action))
        entries = ("observation", "reward", "cost", "terminated", "truncated")
        rows.append(torch.cat([done["next", key].flatten().double() for key in entries]))
    return torch.stack(rows), step


def continues(make, tmp_path, before=13, after=40):
    """Compare an environment with another that continues from its state, across the ends of episodes."""
    first = make()
    assert first.state_error() is None
    actions = [first.action_spec.rand() for _ in range(before + after)]
    _, step = courses(first, first.reset(), actions[:before])
    write_state(tmp_path / "state", first.get_state())
    begin = step.clone()
    expected, _ = courses(first, step, actions[before:])
    second = make()
    second.reset()
    second.set_state(read_state(tmp_path / "state"))
    found, _ = courses(second, begin, actions[before:])
    assert torch.equal(found, expected)
    assert expected[:, -first.num_envs :].any(), "no episode ended, so nothing was drawn"
    assert len(expected.unique(dim=0)) > after // 2, "nothing moved"


class Wanderer(gymnasium.Env):
    """State in many forms: shared arrays, views, nested objects, containers, and generators."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))

    def __init__(self):
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,))
        self.old = np.random.RandomState(3)
        self.inner = type("Inner", (), {})()
        self.inner.owner = self  # a cycle

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.memory = np.zeros(4)
        self.place = self.memory[:2]  # a view
        self.inner.same = self.memory  # another name
        self.trail, self.seen, self.table = [], set(), {1: np.zeros(1)}
        self.pair = (0, np.ones(2))
        return self._observe(), {}

    def _observe(self):
        return np.array([*self.inner.same[:2], len(self.trail) + self.table[1][0] + self.pair[0]], np.float32)

    def step(self, action):
        self.place += action + self.np_random.normal(size=2) + self.old.rand() + self.action_space.sample()
        self.trail.append(self.place.copy())
        self.seen.add(len(self.trail))
        self.table[1] += len(self.seen) * self.old.rand()
        self.pair = (self.pair[0] + 1, self.pair[1] * 2)
        cost = float(self.memory[0] > 0)
        return self._observe(), float(self.place.sum()), False, False, {"cost": cost}


def limited(make, steps=20):
    return gymnasium.wrappers.TimeLimit(make(), steps)


def with_cost(env_id):
    class Cost(gymnasium.Wrapper):
        def step(self, action):
            *result, info = self.env.step(action)
            return (*result, {**info, "cost": float(result[1] > 0)})

    return Cost(gymnasium.make(env_id, max_episode_steps=20, disable_env_checker=True))


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(make_env, "PointCircle", num_envs=3, seed=0, max_episode_steps=20),
        functools.partial(make_env, "PointCircle", seed=0, max_episode_steps=20),
        functools.partial(GymnasiumBatch, functools.partial(limited, Wanderer), num_envs=3, seed=0),
        functools.partial(GymnasiumBatch, functools.partial(limited, Wanderer), seed=0, frame_skip=2),
        functools.partial(GymnasiumBatch, functools.partial(with_cost, "Pendulum-v1"), num_envs=2, seed=0),
        functools.partial(GymnasiumBatch, functools.partial(with_cost, "Ant-v5"), num_envs=2, seed=0),
    ],
    ids=["PointCircle", "one PointCircle", "Wanderer", "one Wanderer", "Pendulum", "Ant"],
)
def test_it_continues_bit_for_bit(make, tmp_path):
    continues(make, tmp_path)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("SafetyPointGoal1-v0", {}),
        ("SafetyPointGoal1-v0", {"fast": False}),
        ("SafetyCarButton1-v0", {}),
        ("SafetyPointPush1-v0", {}),
        ("SafetyDoggoCircle1-v0", {}),
        ("SafetyAntVelocity-v1", {}),
    ],
)
def test_safety_gymnasium_continues_bit_for_bit(env_id, options, tmp_path):
    continues(
        functools.partial(make_env, env_id, num_envs=2, seed=0, max_episode_steps=20, **options), tmp_path
    )


class Outside(Wanderer):
    """Its state lies outside of it, as that of a simulator behind a handle does."""

    world = np.zeros(1)

    def step(self, action):
        self.world[0] = self.world[0] + 1
        result = super().step(action)
        return result[0] + self.world.astype(np.float32), *result[1:]


class Handle(Wanderer):
    """It holds something that cannot be saved."""

    def reset(self, **options):
        self.pipe = iter([])
        return super().reset(**options)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Outside, "Outside steps differently after a state is restored"), (Handle, r"pipe is a list_iterator")],
)
def test_what_cannot_be_saved_says_why(kind, said):
    error = GymnasiumBatch(functools.partial(limited, kind)).state_error()
    assert error is not None
    assert said.replace("\\", "") in error


def test_a_state_that_does_not_fit_is_refused():
    three, two = (GymnasiumBatch(Wanderer, num_envs=n) for n in (3, 2))
    three.reset()
    with pytest.raises(StateError, match="of 3 copies, not of 2"):
        two.set_state(three.get_state())
    other, env = Wanderer(), Wanderer()
    other.reset()
    env.reset()
    env.inner = None
    with pytest.raises(StateError, match=r"Wanderer\.inner"):
        write_object(env, read_object(other))
    with pytest.raises(StateError, match="of 1 copies, not of 4"):
        make_env("PointCircle", num_envs=4).set_state(make_env("PointCircle").get_state())


Pair = namedtuple("Pair", "left right")


class Zoo:
    """One attribute of each kind that a simulator may hold; another seed gives other values."""

    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        self.frozen, self.bag = frozenset({seed, 7}), {seed, "a"}
        self.cut, self.span, self.raw = slice(seed, 9, 2), range(seed, 20), bytes([seed, 1])
        self.trail, self.steps = deque([seed, 2.5], maxlen=4), [draw.random(2), [seed]]
        self.pair = Pair(draw.random(3), (seed, None))
        self.table = {("x", 1): draw.random(), "nested": {"deep": draw.random(2)}}
        self.mixed = np.array([seed, "word", None], dtype=object)
        self.number, self.half = (
            np.float32(seed),
            torch.rand(2, generator=torch.Generator().manual_seed(seed)),
        )
        self.dice, self.old, self.new = random.Random(seed), np.random.RandomState(seed), draw
        self.coin = torch.Generator().manual_seed(seed)
        self.code, self.kind = len, Zoo
        self.part = type("Part", (), {})()
        self.part.height = float(seed)
        self.again = self.steps[0]

    def values(self):
        """Everything as text, with the next draws of the generators."""
        draws = [self.dice.random(), self.old.rand(), self.new.random(), torch.rand(1, generator=self.coin)]
        fields = {
            name: value for name, value in vars(self).items() if name not in ("dice", "old", "new", "coin")
        }
        # Equal sets may print in different orders, by the hashes of this process.
        sets = {name: (type(fields[name]), sorted(fields[name], key=str)) for name in ("frozen", "bag")}
        return repr([draws, {**fields, **sets, "part": vars(self.part)}])


def test_every_kind_of_attribute_comes_back_and_the_state_stays_as_it_was(tmp_path):
    one, other, unlike = Zoo(3), Zoo(5), Zoo(6)
    write_state(tmp_path / "state", {"zoo": read_object(one)})
    state = read_object(one)
    unlike.trail, unlike.half, unlike.again = None, torch.zeros(5), unlike.part
    unlike.extra, unlike.new = 1, None
    expected = one.values()
    one.steps[0][:] = 0.0
    for zoo, saved in ((other, state), (unlike, read_state(tmp_path / "state")["zoo"])):
        write_object(zoo, saved)
        if zoo is unlike:
            assert isinstance(zoo.trail, deque)
            zoo.trail = deque(zoo.trail, maxlen=4)  # a new one has no limit
        assert zoo.values() == expected
        assert zoo.again is zoo.steps[0]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("code", 3, r"Zoo\.code was a builtin_function_or_method, but is a int"),
        ("part", Pair(1, 2), r"Zoo\.part was a Part of the simulator, but is a Pair"),
        ("dice", None, r"Zoo\.dice was a part of the simulator, but is a NoneType"),
        ("old", 3, r"the state does not fit Zoo: AttributeError"),
    ],
)
def test_an_object_of_another_form_is_refused_by_its_place(name, value, said):
    state, other = read_object(Zoo(3)), Zoo(3)
    setattr(other, name, value)
    with pytest.raises(StateError, match=said):
        write_object(other, state)


def test_a_simulator_of_another_size_is_refused():
    models = [mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint/><geom size='1'/></body>" + extra + "</worldbody></mujoco>"
    ) for extra in ("", "<body><freejoint/><geom size='1'/></body>")]  # fmt: skip
    small, large = (types.SimpleNamespace(model=model) for model in models)
    with pytest.raises(StateError, match=r"model\.\w+ had shape .*, but the new simulator's differs"):
        write_object(small, read_object(large))


def test_an_environment_whose_episodes_are_short_is_tried_up_to_their_end():
    assert GymnasiumBatch(functools.partial(limited, Wanderer, 2)).state_error() is None


def test_an_environment_without_a_state_says_so():
    circle = make_env("PointCircle")
    assert ConstrainedEnv.state_error(circle) == "PointCircle cannot save its state"
    with pytest.raises(StateError, match="PointCircle cannot save its state"):
        ConstrainedEnv.get_state(circle)
    with pytest.raises(StateError, match="PointCircle cannot restore a state"):
        ConstrainedEnv.set_state(circle, {})
