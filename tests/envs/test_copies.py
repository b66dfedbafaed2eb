"""Deep copies and pickles of environments go on as the originals do."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cost_envs import Choice

from safe_components.envs import GymnasiumBatch, make_env, make_safety_gymnasium

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda env: pickle.loads(pickle.dumps(env))}
NAVIGATION, VELOCITY = "SafetyPointGoal1-v0", "SafetyHalfCheetahVelocity-v1"


@pytest.fixture(params=COPIES)
def copied(request):
    return COPIES[request.param]


@pytest.mark.parametrize(("env_id", "fast"), [(NAVIGATION, True), (NAVIGATION, False), (VELOCITY, True)])
def test_a_copied_task_goes_on_as_the_original(env_id, fast, copied):
    task = make_safety_gymnasium(env_id, fast=fast, max_episode_steps=6)
    task.reset(seed=3)
    action = 0.5 * task.action_space.low
    task.step(action)
    other = copied(task)
    for _ in range(5):
        result, expected = other.step(action), task.step(action)
        np.testing.assert_array_equal(result[0], expected[0])
        assert result[1:5] == expected[1:5]
    assert expected[4]
    np.testing.assert_array_equal(other.reset()[0], task.reset()[0])


def test_a_task_that_was_not_reset_can_be_copied(copied):
    other = copied(make_safety_gymnasium(NAVIGATION, max_episode_steps=6))
    np.testing.assert_array_equal(other.reset(seed=1)[0], make_safety_gymnasium(NAVIGATION).reset(seed=1)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_env("PointCircle", num_envs=2, seed=0),
        lambda: GymnasiumBatch(Choice, num_envs=2, seed=0),
        lambda: make_env(NAVIGATION, num_envs=2, seed=0, max_episode_steps=8),
    ],
)
def test_a_copied_batch_goes_on_as_the_original(make, copied):
    env = make()
    if isinstance(env, GymnasiumBatch) and env.name == "Choice":
        for one in env.envs:
            one.cost = abs  # a lambda cannot be pickled
    env.rollout(3, break_when_any_done=False)
    other = copied(env)
    courses = []
    for one in (env, other):
        torch.manual_seed(0)
        courses.append(one.rollout(10, break_when_any_done=False))
    assert (courses[0] == courses[1]).all()
