"""make_env: workers, costs, actions, and the errors; the laws are in tests/laws."""

import functools
import importlib
import sys

import gymnasium
import numpy as np
import pytest
import torch
from cost_envs import Corridor
from torchrl.envs import ParallelEnv, check_env_specs

from safe_components.envs import GymnasiumBatch, make_env
from safe_components.envs.safety_gymnasium import load_safety_gymnasium

SAFETY, GYM, SIX = "SafetyPointGoal1-v0", "cost_envs:Corridor-v0", "cost_envs:SixValues-v0"


def random_rollout(env, steps):
    torch.manual_seed(0)
    return env.rollout(steps, break_when_any_done=False)


def test_workers():
    env = make_env(SAFETY, num_envs=4, num_workers=2, seed=3)
    try:
        assert isinstance(env, ParallelEnv)
        assert env.batch_size == (2, 2)
        first = random_rollout(env, 5)
        assert first["next", "cost"].shape == (2, 2, 5, 1)
        assert first["observation"][..., 0, :].flatten(0, 1).unique(dim=0).shape[0] == 4
        env.set_seed(3)
        assert (random_rollout(env, 5) == first).all()
        check_env_specs(env)
    finally:
        env.close()


@pytest.mark.parametrize("env_id", [GYM, SIX])
def test_numbers_of_one_copy_are_those_of_the_environment_with_the_same_seed(env_id):
    env = make_env(env_id, seed=5)
    raw = gymnasium.make(env_id.split(":")[1], disable_env_checker=True)
    observation, _ = raw.reset(seed=5)
    rollout = random_rollout(env, 8)
    for t in range(rollout.shape[0]):
        np.testing.assert_allclose(rollout["observation"][t], observation, rtol=1e-6)
        result = raw.step(rollout["action"][t].numpy())
        observation = result[0]
        cost = result[2] if len(result) == 6 else result[-1]["cost"]
        assert rollout["next", "reward"][t].item() == pytest.approx(result[1], rel=1e-6)
        assert rollout["next", "cost"][t].item() == cost
        np.testing.assert_allclose(rollout["next", "observation"][t], observation, rtol=1e-6)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (lambda x: 2, [2.0]),
        (lambda x: np.float64(0.5), [0.5]),
        (lambda x: np.array([0.25]), [0.25]),
        (lambda x: np.int32(3), [3.0]),
        (lambda x: True, [1.0]),
        (lambda x: [1, 2, 4], [1.0, 2.0, 4.0]),
        (lambda x: np.array([0.5, 8.0]), [0.5, 8.0]),
    ],
)
def test_a_cost_may_be_any_number_or_a_vector(cost, expected):
    env = GymnasiumBatch(functools.partial(Corridor, cost=cost), num_envs=2, frame_skip=2)
    out = env.rollout(1)["next", "cost"]
    assert out.tolist() == [[[2 * x for x in expected]]] * 2
    assert out.dtype == torch.float32


def test_cost_keys_stack():
    env = make_env(SIX, cost_keys=("cost_b", "cost_a"), seed=0)
    rollout = env.rollout(3)
    assert rollout["next", "cost"].shape == (3, 2)
    assert torch.equal(rollout["next", "cost"][:, :1], rollout["next", "reward"].abs())
    hazards = make_env(SAFETY, cost_keys=("cost_hazards", "cost_sum"), seed=0)
    assert hazards.full_reward_spec["cost"].shape == (2,)


def test_frame_skip_sums_reward_and_cost_and_stops_at_the_end():
    raw = GymnasiumBatch(functools.partial(Corridor, start=1.0))
    skipped = GymnasiumBatch(functools.partial(Corridor, start=1.0), frame_skip=3)
    assert type(skipped) is GymnasiumBatch  # TorchRL appended no transform of its own
    for env, frames in ((raw, 5), (skipped, 2)):
        rollout = env.rollout(9, policy=lambda td: td.set("action", torch.ones(1)))
        assert rollout.shape[0] == frames
        assert rollout["next", "reward"].sum().item() == 1.5 + 2 + 2.5 + 3 + 3.5
        assert rollout["next", "cost"].sum().item() == 5
        assert rollout["next", "terminated"].flatten().tolist() == [False] * (frames - 1) + [True]
        assert not rollout["next", "truncated"].any()


def test_actions_outside_the_bounds_are_clipped_and_stay_as_sampled():
    env = GymnasiumBatch(functools.partial(Corridor, start=0.0))
    rollout = env.rollout(2, policy=lambda td: td.set("action", torch.tensor([4.0])))
    assert rollout["action"].flatten().tolist() == [4.0, 4.0]
    assert env.envs[0].executed[-2:] == [0.5, 0.5]
    assert rollout["next", "observation"][:, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"cost": lambda x: float("nan") if x > 1 else 0.0}, "cost is nan in environment 1 of 2 at step 3"),
        ({"cost": lambda x: 1e39 if x > 1 else 0.0}, "cost is inf in environment 1 of 2 at step 3"),
    ],
)
def test_numbers_that_are_not_finite_stop_at_once(fault, message):
    env = GymnasiumBatch(functools.partial(Corridor, start=0.0, **fault), num_envs=2)
    actions = torch.tensor([[0.1], [0.5]])
    with pytest.raises(FloatingPointError, match=message):
        env.rollout(9, policy=lambda td: td.set("action", actions))


def test_observations_that_are_not_finite():
    env = GymnasiumBatch(functools.partial(Corridor, start=float("inf")))
    with pytest.raises(FloatingPointError, match="observation is inf in environment 0 of 1 at step 0"):
        env.reset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        ({"num_envs": 1.5}, "num_envs must be an integer"),
        ({"frame_skip": 0}, "frame_skip must be"),
        ({"num_workers": 0}, "num_workers must be"),
        ({"num_envs": 3, "num_workers": 2}, "num_envs 3 must be a multiple of num_workers 2"),
        ({"max_episode_steps": 0}, "max_episode_steps must be"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"cost_keys": ("cost", "cots")}, "no cost 'cots'.*numeric entries found.*cost"),
        ({"env_id": "cost_envs:Free-v0"}, "Free-v0 reports no cost 'cost'.*speed"),
        ({"env_id": "CartPole-v1"}, "CartPole-v1 reports no cost 'cost'"),
        ({"env_id": "safetypointgoal1-v0"}, "unknown environment.*did you mean SafetyPointGoal1-v0"),
        ({"env_id": "SafetyPointGaol1-v0"}, "did you mean SafetyPointGoal1-v0"),
        ({"env_id": "PointCirle"}, "did you mean PointCircle"),
        ({"env_id": "HalfCheeta-v5"}, "did you mean HalfCheetah-v5"),
        ({"env_id": "no_such_module:Env-v0"}, "there is no module 'no_such_module'"),
        ({"env_id": "PointCircle", "render_mode": "human"}, "render_mode must be None"),
        ({"autoreset": True}, "autoreset must be left out"),
        ({"step_timeout": 0.0}, "step_timeout must be a positive number"),
        ({"step_timeout": float("inf")}, "step_timeout must be a positive number"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_env(**({"env_id": GYM} | arguments))


def test_spaces_that_are_not_supported():
    class Listening(Corridor):
        observation_space = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2))

    class Keys(Corridor):
        action_space = gymnasium.spaces.MultiBinary(2)

    with pytest.raises(ValueError, match=r"observation space .* cannot be flattened"):
        GymnasiumBatch(Listening)
    with pytest.raises(
        ValueError, match=r"action space .* is not supported: use a Box, Discrete or MultiDiscrete"
    ):
        GymnasiumBatch(lambda: Keys(cost=lambda x: 0))


def test_render():
    class Drawn(Corridor):
        def render(self):
            return np.zeros((2, 2, 3), np.uint8)

    assert GymnasiumBatch(Drawn).render().shape == (2, 2, 3)


MODULE = """
import gymnasium
from cost_envs import SixValues
from safety_gymnasium.utils.registration import register
gymnasium.register("SafetySixOfMine-v0", entry_point=SixValues, max_episode_steps=7)
register(
    id="SafetyPointMyGoal1-v0",
    entry_point="safety_gymnasium.builder:Builder",
    kwargs={"task_id": "SafetyPointGoal1-v0", "config": {"agent_name": "Point"}},
    max_episode_steps=9,
)
"""


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("envs_of_mine:SafetySixOfMine-v0", 7),
        ("envs_of_mine:SafetyPointMyGoal1-v0", 9),
        ("safety_gymnasium:SafetyPointGoal1-v0", 1000),
        (SIX, None),
    ],
)
@pytest.mark.parametrize("max_episode_steps", [None, 4])
def test_ids_of_modules_whose_steps_return_six_values(
    env_id, limit, max_episode_steps, tmp_path, monkeypatch
):
    (tmp_path / "envs_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "envs_of_mine", raising=False)
    registered = load_safety_gymnasium().utils.registration
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry.copy())
    monkeypatch.setattr(registered, "safe_registry", registered.safe_registry.copy())
    env = make_env(env_id, max_episode_steps=max_episode_steps, seed=0)
    assert env.max_episode_steps == (max_episode_steps or limit)
    ends = env.rollout(9, break_when_any_done=False)["next", "truncated"].flatten().tolist()
    every = env.max_episode_steps or 99
    assert ends == [(t + 1) % every == 0 for t in range(9)]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "import no_such_package",
            ImportError,
            "importing 'broken' raises ModuleNotFoundError.*no_such_package",
        ),
        ("from math import nothing", ImportError, "importing 'broken' raises ImportError.*'nothing'"),
        ("1 / 0", ImportError, "importing 'broken' raises ZeroDivisionError"),
        ("raise SystemExit(3)", ImportError, "importing 'broken' raises SystemExit: 3"),
        ("def", ImportError, "importing 'broken' raises SyntaxError"),
        ("", ValueError, "unknown environment 'broken:Mine-v0'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_shown(source, error, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(error, match=message):
        make_env("broken:Mine-v0")


def test_a_missing_module_is_named():
    with pytest.raises(ValueError, match="there is no module 'no_such_module'"):
        make_env("no_such_module.envs:Env-v0")


@pytest.mark.slow
def test_workers_reset_with_a_seed_as_with_set_seed():
    env = make_env(GYM, num_envs=2, num_workers=2)
    try:
        first = env.reset(seed=3)["observation"]
        env.set_seed(3)
        assert torch.equal(env.reset()["observation"], first)
        assert not torch.equal(first[0], first[1])
    finally:
        env.close()


def test_a_package_of_ones_own_may_use_names_of_safety_gymnasium_without_it(monkeypatch):
    """Where Safety-Gymnasium is missing, a registered id is the user's, and others say what is missing."""

    def missing():
        raise ImportError("safety-gymnasium is not installed")

    module = importlib.import_module("safe_components.envs.make_env")
    monkeypatch.setattr(module, "safety_gymnasium_ids", missing)
    monkeypatch.setitem(gymnasium.registry, "SafetyMine-v0", gymnasium.spec("CartPole-v1"))
    assert module._safety_ids("SafetyMine-v0") == []
    with pytest.raises(ImportError, match="safety-gymnasium is not installed"):
        make_env("SafetyNobodys-v0")
    with pytest.raises(ValueError, match=r"unknown environment 'Qqqq-v0'; see gymnasium.registry"):
        make_env("Qqqq-v0")
