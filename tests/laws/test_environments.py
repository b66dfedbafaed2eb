"""The laws that every environment keeps, with one copy and with several."""

import functools
from importlib.util import find_spec

import pytest
import torch
from cost_envs import SixValues
from devices import DEVICES
from episodes import check_sums, summed
from tensordict import TensorDict
from torchrl.envs import check_env_specs

from safe_components.envs import GymnasiumBatch, make_env

LIMIT, STEPS = 8, 20
# Each is called with num_envs, device, seed and max_episode_steps=LIMIT.
ENVIRONMENTS = {
    "PointCircle": functools.partial(make_env, "PointCircle"),
    "PointCircle-2-costs": functools.partial(
        make_env, "PointCircle", cost_keys=("walls", "speed"), frame_skip=2
    ),
    "Gymnasium": functools.partial(make_env, "cost_envs:Corridor-v0"),
    "PointCircle-0-costs": functools.partial(make_env, "PointCircle", cost_keys=()),
    "Gymnasium-0-costs": functools.partial(make_env, "cost_envs:Free-v0", cost_keys=()),
    "Gymnasium-discrete": functools.partial(make_env, "cost_envs:Choice-v0"),
    "Gymnasium-6-values": lambda max_episode_steps, **options: GymnasiumBatch(
        functools.partial(SixValues, max_episode_steps), **options
    ),
    "Safety-Gymnasium-navigation": functools.partial(make_env, "SafetyPointGoal1-v0"),
    "Safety-Gymnasium-velocity": functools.partial(make_env, "SafetyHalfCheetahVelocity-v1"),
}
if find_spec("jax"):
    from jax_envs import CORRIDOR

    from safe_components.envs.jax_batch import JaxBatch

    ENVIRONMENTS["JAX"] = functools.partial(JaxBatch, CORRIDOR)
    ENVIRONMENTS["JAX-2-costs"] = functools.partial(
        JaxBatch, CORRIDOR, cost_keys=("cost", "speed"), frame_skip=2
    )


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=[1, 3])
def num_envs(request):
    return request.param


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * name.startswith("JAX")) for name in ENVIRONMENTS]
)
def make(request, device):
    return functools.partial(ENVIRONMENTS[request.param], device=device, max_episode_steps=LIMIT)


def random_rollout(env):
    torch.manual_seed(0)
    return env.rollout(STEPS, break_when_any_done=False)


def gentle(env):
    """A policy under which no episode terminates."""
    action = env.full_action_spec["action"].zero() + 0.1
    return lambda td: td.set("action", action)


def same(a, b):
    return bool((a == b).all())


def test_steps_write_what_the_specs_say(make, num_envs, device):
    env = make(num_envs=num_envs, seed=0)
    check_env_specs(env, seed=0)
    data = random_rollout(env)
    assert env.batch_size == ((num_envs,) if num_envs > 1 else ())
    assert data.device.type == device
    assert data["observation"].dtype == data["action"].dtype == torch.float32
    sizes = {"reward": 1, "cost": env.full_reward_spec["cost"].shape[-1]}
    flags = dict.fromkeys(("done", "terminated", "truncated"), 1)
    for key, size in (sizes | flags).items():
        assert data["next", key].shape == (*env.batch_size, STEPS, size)
        assert data["next", key].dtype == (torch.bool if key in flags else torch.float32)


def test_one_seed_one_course_and_another_seed_another(make, num_envs):
    env = make(num_envs=num_envs, seed=7)
    first = random_rollout(env)
    env.set_seed(7)
    assert same(random_rollout(env), first)
    assert same(random_rollout(make(num_envs=num_envs, seed=7)), first)
    other = random_rollout(make(num_envs=num_envs, seed=8))
    assert not same(other["observation"], first["observation"])


def test_no_two_episodes_start_alike(make, num_envs):
    env = make(num_envs=num_envs, seed=0)
    starts = torch.cat([env.reset()["observation"].reshape(num_envs, -1) for _ in range(4)])
    assert starts.unique(dim=0).shape[0] == 4 * num_envs


def test_sums_over_episodes_are_those_of_the_steps(make, num_envs):
    check_sums(random_rollout(summed(make(num_envs=num_envs, seed=0))))


def test_episodes_are_truncated_at_the_limit_and_start_again(make, num_envs):
    env = make(num_envs=num_envs, seed=0)
    assert env.max_episode_steps == LIMIT
    data = env.rollout(STEPS, gentle(env), break_when_any_done=False)
    length = LIMIT // env.frame_skip
    ends = torch.arange(1, STEPS + 1, device=data.device) % length == 0
    assert same(data["next", "truncated"].squeeze(-1), ends)
    assert same(data["next", "done"].squeeze(-1), ends)
    assert not data["next", "terminated"].any()
    assert not data["done"].any()
    # Within an episode, a step starts where the last one ended.
    continues = (data["next", "observation"][..., :-1, :] == data["observation"][..., 1:, :]).all(-1)
    assert same(continues, ~ends[:-1])


def test_a_partial_reset_touches_only_its_copies(make):
    env = make(num_envs=3, seed=0)
    length = LIMIT // env.frame_skip
    state = env.rollout(length // 2, gentle(env))[:, -1]["next"].exclude("reward", "cost")
    before = state["observation"].clone()
    chosen = torch.tensor([False, True, False], device=state.device)
    state = env.reset(state.set("_reset", chosen.unsqueeze(-1)))
    unchanged = (state["observation"] == before).all(-1)
    assert same(unchanged, ~chosen)
    # The others end first, and wait in their last state for the copy that was reset.
    wait = {"auto_reset": False, "break_when_any_done": False, "break_when_all_done": True}
    data = env.rollout(2 * length, gentle(env), tensordict=state, **wait)["next"]
    assert data.shape == (3, length)
    assert same(data["done"].sum(1), torch.where(chosen, 1, length - length // 2 + 1).unsqueeze(-1))
    last, waiting = data[:, length // 2 - 1][~chosen], data[:, length // 2 :][~chosen]
    assert same(waiting["observation"], last["observation"].unsqueeze(1))


def test_no_step_overwrites_what_an_earlier_one_returned(make, num_envs):
    env = make(num_envs=num_envs, seed=1)
    td = env.reset()
    kept = []
    for _ in range(LIMIT // env.frame_skip):
        td = env.rand_step(td)
        kept.append((td["next"], td["next"].clone()))
        td = env.step_mdp(td)
    env.reset()
    assert all(same(a, b) for a, b in kept)


def test_a_caller_may_write_into_what_it_was_given(make, num_envs):
    env = make(num_envs=num_envs, seed=1)
    td = env.reset()
    no_copy = TensorDict({"_reset": torch.zeros_like(td["done"])}, env.batch_size)
    for given in (lambda: td, lambda: env.rand_step(td)["next"]):
        observation = given()["observation"]
        state = observation.clone()
        observation.zero_()
        assert same(env._reset(no_copy)["observation"], state)


def test_an_action_that_is_not_finite_is_an_error(make, num_envs):
    env = make(num_envs=num_envs)
    bad = env.full_action_spec["action"].zero()
    bad.view(num_envs, -1)[-1, 0] = float("nan")
    # On an accelerator the host looks once in the length of an episode, maybe after the copy was reset.
    steps = LIMIT if env.device.type == "cpu" else env.max_episode_steps
    said = f"action of (environment {num_envs - 1}|an environment reset since) is not finite"
    with pytest.raises(FloatingPointError, match=said):
        env.rollout(steps, lambda td: td.set("action", bad), break_when_any_done=False)
