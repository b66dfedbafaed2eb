"""JaxBatch: numbers of a known environment, state, devices and errors; the laws are in tests/laws."""

import types

import pytest
import torch
from tensordict import TensorDict

pytest.importorskip("jax", reason='needs JAX: pip install "jax>=0.6"')

import jax
import jax.numpy as jnp
from jax_envs import CORRIDOR, Corridor

from safe_components.envs import StateError, check_env
from safe_components.envs.jax_batch import JaxBatch, jax_device
from safe_components.training.state_file import read_state, write_state

pytestmark = pytest.mark.slow  # compiles for half a minute


def play(env, actions):
    """The steps [N, T] of given actions [T], the same in every copy."""
    td, steps = env.reset(), []
    for action in actions:
        td["action"] = torch.full(env.action_spec.shape, float(action))
        td = env.step(td)
        steps.append(td["next"].clone())
        td = env.step_mdp(td)
    return torch.stack(steps, -1)


def test_numbers_are_those_of_the_environment():
    env = JaxBatch(Corridor(start=0.5), num_envs=2, frame_skip=2, cost_keys=("cost", "speed"))
    steps = play(env, [1.0, -0.5, 4.0, 1.0, 1.0])  # the third acts like 1
    # Raw steps lead to 1, 1.5 | 1.25, 1 | 1.5, 2 | 2.5, 3 | 3.5, where the episode ends.
    assert steps["observation"][0].tolist() == [[1.5, 2], [1, 4], [2, 6], [3, 8], [3.5, 9]]
    assert steps["reward"][0, :, 0].tolist() == [2.5, 2.25, 3.5, 5.5, 3.5]
    assert steps["cost"][0].tolist() == [[1, 2], [1, 1], [2, 2], [2, 2], [1, 1]]
    assert steps["terminated"][0, :, 0].tolist() == [False] * 4 + [True]
    assert not steps["truncated"].any()
    assert steps["cost"].dtype == steps["reward"].dtype == torch.float32


def test_a_state_in_a_file_continues_elsewhere(tmp_path):
    env = JaxBatch(CORRIDOR, num_envs=3, seed=0, max_episode_steps=8)
    play(env, [0.1] * 3)
    write_state(tmp_path / "state", env.get_state())
    state = read_state(tmp_path / "state")
    rest = onward(env)
    other = JaxBatch(CORRIDOR, num_envs=3, seed=1, max_episode_steps=8)
    other.set_state(state)
    again = onward(other)
    assert rest["next", "done"].any()
    assert (rest == again).all()
    with pytest.raises(StateError, match="not of 2 copies of Corridor"):
        JaxBatch(CORRIDOR, num_envs=2).set_state(state)


def onward(env):
    """Twelve steps from the present state on, under a policy."""
    nobody = TensorDict({"_reset": torch.zeros(3, 1, dtype=torch.bool)}, env.batch_size)
    there = {"auto_reset": False, "tensordict": env.reset(nobody)}
    policy = lambda td: td.set("action", td["observation"][:, :1] / 2)  # noqa: E731
    return env.rollout(12, policy, break_when_any_done=False, **there)


def test_seeds_beyond_32_bits_differ():
    starts = [JaxBatch(CORRIDOR, seed=seed).reset()["observation"][0].item() for seed in (1, 1 + 2**32)]
    assert starts[0] != starts[1]


class OwnReset(Corridor):
    """Reports another structure after a step."""

    def step(self, state, action):
        state = super().step(state, action)
        return state._replace(info=state.info | {"more": 1.0})


class Parts(Corridor):
    """Observes two vectors."""

    def reset(self, rng):
        state = super().reset(rng)
        return state._replace(obs={"x": state.obs, "y": state.obs})

    def step(self, state, action):
        state = super().step(state._replace(obs=state.obs["x"]), action)
        return state._replace(obs={"x": state.obs, "y": state.obs})


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (CORRIDOR, {"cost_keys": ("price",)}, r"no cost 'price'; its .* hold \['cost', 'key', 'speed'\]"),
        (OwnReset(), {}, "states of different structure"),
        (Parts(), {}, "the observation must be one vector"),
        (CORRIDOR, {"max_episode_steps": 0}, "max_episode_steps must be an integer of at least 1, got 0"),
        (CORRIDOR, {"seed": -1}, "seed must be an integer of at least 0, or None, got -1"),
    ],
)
def test_what_is_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        JaxBatch(env, **options)


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        (lambda x: jnp.log(-x), FloatingPointError, "environment 0 is not finite: the simulation diverged"),
        (lambda x: -x, ValueError, "cost of environment 0 is negative, must be at least 0"),
    ],
)
def test_a_simulator_that_fails_is_an_error(cost, error, message):
    with pytest.raises(error, match=f"Corridor: .*{message}, within the last 1 of 1 steps"):
        play(JaxBatch(Corridor(0.5, cost), num_envs=2), [0.1])


def test_the_battery_with_no_cost_and_with_two():
    for keys in ((), ("cost", "speed")):
        env = JaxBatch(CORRIDOR, num_envs=2, max_episode_steps=8, cost_keys=keys)
        check_env(env, steps=20).raise_if_broken()


def test_a_gpu_that_jax_does_not_have_is_said(monkeypatch):
    cpu = jax.local_devices(backend="cpu")

    def none(backend):
        if backend == "cpu":
            return cpu
        raise RuntimeError("Unknown backend gpu")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.warns(UserWarning, match=r"Task is simulated on the CPU, and every step is copied to cuda:1"):
        assert jax_device(torch.device("cuda:1"), "Task") == cpu[0]


def test_memory_that_jax_reserves_is_said(monkeypatch):
    gpus = [types.SimpleNamespace(local_hardware_id=i) for i in (0, 1)]
    monkeypatch.setattr(jax, "local_devices", lambda backend: gpus)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    with pytest.warns(UserWarning, match="Set XLA_PYTHON_CLIENT_PREALLOCATE=false"):
        assert jax_device(torch.device("cuda:1"), "Task") is gpus[1]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert jax_device(torch.device("cuda:0"), "Task") is gpus[0]  # a warning would be an error
