"""Environments by functions and classes of one's own, named by import path."""

import sys

import cost_envs
import gymnasium
import pytest
import torch
from devices import DEVICES
from small_runs import small
from torchrl.envs import SerialEnv

import td3_lag
from safe_components.envs import GymnasiumBatch, check_env, env_from_factory, make_env
from safe_components.training import Task


def rollout(env, steps=6):
    torch.manual_seed(0)
    return env.rollout(steps, break_when_any_done=False)


def test_a_function_and_a_class_make_the_environment_that_an_id_makes():
    registered = rollout(make_env("cost_envs:Corridor-v0", num_envs=2, seed=3))
    for named in ("cost_envs:Corridor", "cost_envs:corridor"):
        env = make_env(named, num_envs=2, seed=3, max_episode_steps=8)
        assert isinstance(env, GymnasiumBatch)
        assert bool((rollout(env) == registered).all())
    assert make_env("cost_envs:corridor", start=0.5).reset()["observation"].tolist() == [0.5, 0.0]


def test_copies_limit_costs_and_types_are_added_to_an_environment_of_torchrl():
    env = make_env("cost_envs:Plain", num_envs=3, seed=1, max_episode_steps=4, cost_keys=("speed", "cost"))
    assert isinstance(env.base_env, SerialEnv)
    steps = rollout(env, 9)
    assert steps["observation"].dtype == steps["next", "reward"].dtype == torch.float32
    executed = steps["action"].clamp(-0.5, 0.5)
    torch.testing.assert_close(steps["next", "cost"][..., :1], executed.abs().float())
    walls = (steps["next", "observation"][..., :1] > 1).float()
    torch.testing.assert_close(steps["next", "cost"][..., 1:], walls)
    assert {"cost", "speed"}.isdisjoint(steps.keys())
    ends = steps["next", "truncated"].squeeze(-1)
    assert ends.sum(1).tolist() == [2, 2, 2]
    assert env.max_episode_steps == 4
    assert make_env("cost_envs:Plain", cost_keys=()).rollout(2)["next", "cost"].shape == (2, 0)


def test_a_factory_gets_what_it_names_and_a_constrained_environment_stays_as_it_is():
    env = make_env("cost_envs:circles", num_envs=2, frame_skip=2, cost_keys=("walls", "speed"), x_lim=0.5)
    assert type(env) is cost_envs.PointCircle
    assert (env.num_envs, env.frame_skip, env.costs, env.x_lim) == (2, 2, ("walls", "speed"), 0.5)


@pytest.mark.parametrize("device", DEVICES)
def test_an_environment_is_trained_on_the_device_it_lives_on(device):
    env = {"id": "cost_envs:circles", "max_episode_steps": None, "cost_keys": ["walls"]}
    task = Task(small(td3_lag, "--device", device, env=env))
    assert task.env_device.type == task.training_env(0).device.type == device
    on_cpu = {"id": "cost_envs:Plain", "max_episode_steps": 5}
    assert Task(small(td3_lag, "--device", device, env=on_cpu)).env_device.type == device  # it takes a device


def test_the_battery_passes_an_environment_of_ones_own():
    assert check_env("cost_envs:Plain", num_envs=2, max_episode_steps=20)
    report = check_env("cost_envs:Plain", num_envs=2)
    assert "time limit: none is known" in str(report)


@pytest.mark.parametrize(
    ("env_id", "options", "said"),
    [
        ("cost_envs:NUMBER", {}, "3 .int., must be a function or class"),
        ("cost_envs:Nothing", {}, "'cost_envs' has no 'Nothing', nor is that an id"),
        ("cost_envs:Choice.nothing", {}, "has no 'Choice.nothing'"),
        (
            "cost_envs:Plain",
            {"frame_skip": 2},
            "frame_skip is 2, but cost_envs:Plain takes no .*frame-skip 1",
        ),
        (
            "cost_envs:Plain",
            {"cost_keys": ("walls",)},
            "no cost 'walls'.*they write observation, cost, speed",
        ),
        ("cost_envs:discrete_plain", {}, r"actions that no part can use \(UnboundedCont"),
        (
            "cost_envs:two_copies",
            {"num_envs": 3},
            r"batch size \[2\], but num_envs is 3: let it take num_envs",
        ),
        ("builtins:dict", {}, "make returned {} .dict., must return a gymnasium.Env"),
    ],
)
def test_what_cannot_be_used_is_refused(env_id, options, said):
    with pytest.raises(ValueError, match=said):
        make_env(env_id, **options)


def test_an_error_of_a_module_or_a_factory_is_the_real_one(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    with pytest.raises(ImportError, match=r"importing 'failing' raises ModuleNotFoundError.*no_such_package"):
        make_env("failing:make")

    def failing():
        raise RuntimeError("the simulator is off")

    with pytest.raises(RuntimeError, match="the simulator is off"):
        env_from_factory(failing, "failing")


def test_an_observation_that_is_no_vector_is_refused_before_training():
    with pytest.raises(
        ValueError, match=r"must write 'observation' as a vector .*shape \[2, 2\], torch.float32"
    ):
        Task(small(td3_lag, env={"id": "test_from_factory:square", "max_episode_steps": 5}))


def square():
    env = cost_envs.Plain()
    env.observation_spec = cost_envs.Composite(
        observation=cost_envs.Unbounded((2, 2)), cost=cost_envs.Unbounded(())
    )
    return env


def test_a_name_of_the_module_comes_before_an_id(monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "corridor", gymnasium.spec("CartPole-v1"))
    assert make_env("cost_envs:corridor").name == "Corridor"
    monkeypatch.delattr(cost_envs, "corridor")
    with pytest.raises(ValueError, match="reports no cost 'cost'"):
        make_env("cost_envs:corridor")
