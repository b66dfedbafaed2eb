"""The unit of rewards and of costs does not matter: training takes the same course in other units."""

import pytest
import torch
from tensordict import TensorDict

import cvpo
import ppo_lag
import sac_lag
import td3_lag
from safe_components import keys
from safe_components.training import Task, parse_config, value_units

LIMIT = 25.0


def random_steps(reward_unit, cost_unit):
    """Steps ``[4, 30]`` whose signals depend on the state and the action."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(4, 31, 4, generator=generator)
    action = 2 * torch.rand(4, 30, 2, generator=generator) - 1
    now, then = observation[:, :-1], observation[:, 1:]
    reward = now[..., :1] + action[..., :1]
    cost = (action[..., 1:] > 0.3).float()
    following = {
        "observation": then,
        "reward": reward_unit * reward,
        "cost": cost_unit * cost,
        "done": torch.zeros(4, 30, 1, dtype=torch.bool),
        "terminated": torch.zeros(4, 30, 1, dtype=torch.bool),
        "step_count": torch.arange(1, 31).expand(4, 30).unsqueeze(-1),
    }
    return TensorDict({"observation": now, "action": action, "next": following}, [4, 30])


def course(reward_unit, cost_unit, *flags):
    """Train on the same random numbers; return the learner, its last weights and their metrics."""
    limit = ["--cost-limit", str(LIMIT * cost_unit)]
    config = parse_config(cvpo.Config, ["--env.id", "PointCircle", "--env.num-envs", "4", *limit, *flags])
    task = Task(config)
    learner = cvpo.CVPO(config, task)
    steps = random_steps(reward_unit, cost_unit)
    units = value_units(steps, task.limits, config.discount, task.episode_length)
    learner.set_units(**units)
    torch.manual_seed(1)
    rows = steps.flatten(0, 1)
    for _ in range(6):
        learner.observe(steps, cost_unit * torch.tensor([[40.0]]), 0)
        states = rows.select(keys.OBSERVATION).clone()
        metrics = learner.update(rows.clone(), states)
    return learner, states[keys.PARTICLE_WEIGHT], metrics


@pytest.mark.parametrize(
    ("flags", "reward_unit", "cost_unit"),
    [
        (("--multiplier", "price"), 2.0**10, 2.0**-10),
        (("--multiplier", "price"), 2.0**-10, 2.0**13),
        (("--multiplier", "dual"), 2.0**10, 2.0**10),
        (("--policy", "tanh", "--estep.entropy-coef", "0.1"), 2.0**10, 2.0**-10),
    ],
)
def test_the_course_is_the_same_in_other_units(flags, reward_unit, cost_unit):
    """Powers of two change no digit, so only a number that has a unit of its own can make a difference."""
    learner, weight, metrics = course(1.0, 1.0, *flags)
    other, found, measured = course(reward_unit, cost_unit, *flags)
    assert weight.std() > 0.01
    torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        measured["lambda"] * cost_unit / reward_unit, metrics["lambda"], rtol=1e-4, atol=0
    )
    torch.testing.assert_close(measured["eta"] / reward_unit, metrics["eta"], rtol=1e-4, atol=0)
    for name, parameter in other.policy.named_parameters():
        torch.testing.assert_close(parameter, learner.policy.get_parameter(name), rtol=0, atol=1e-5)


def actor_course(recipe, learner_type, reward_unit, cost_unit):
    """Train an actor-critic method on the same random numbers; return the learner and its last metrics."""
    limit = ["--cost-limit", str(LIMIT * cost_unit)]
    config = parse_config(recipe.Config, ["--env.id", "PointCircle", "--env.num-envs", "4", *limit])
    task = Task(config)
    learner = learner_type(config, task)
    steps = random_steps(reward_unit, cost_unit)
    units = value_units(steps, task.limits, config.discount, task.episode_length)
    getattr(learner, "set_units", learner.critics.set_units)(**units)
    torch.manual_seed(1)
    for number in range(6):
        learner.observe(steps, cost_unit * torch.tensor([[40.0]]), 0)
        rows = steps.flatten(0, 1).clone()
        metrics = learner.update(rows) if recipe is sac_lag else learner.update(rows, number)
    return learner, metrics


@pytest.mark.parametrize(("recipe", "learner_type"), [(sac_lag, sac_lag.SACLag), (td3_lag, td3_lag.TD3Lag)])
@pytest.mark.parametrize(("reward_unit", "cost_unit"), [(2.0**10, 2.0**-10), (2.0**-10, 2.0**10)])
def test_an_actor_critic_takes_the_same_course_in_other_units(recipe, learner_type, reward_unit, cost_unit):
    learner, metrics = actor_course(recipe, learner_type, 1.0, 1.0)
    other, measured = actor_course(recipe, learner_type, reward_unit, cost_unit)
    for name, parameter in other.policy.named_parameters():
        torch.testing.assert_close(parameter, learner.policy.get_parameter(name), rtol=0, atol=1e-5)
    torch.testing.assert_close(measured["q_reward"] / reward_unit, metrics["q_reward"], rtol=1e-4, atol=0)
    torch.testing.assert_close(measured["q_cost"] / cost_unit, metrics["q_cost"], rtol=1e-4, atol=0)


def ppo_course(reward_unit, cost_unit):
    """Train PPO-Lag on the same random numbers; return the learner and its last metrics."""
    limit = ["--cost-limit", str(LIMIT * cost_unit)]
    config = parse_config(ppo_lag.Config, ["--env.id", "PointCircle", "--env.num-envs", "4", *limit])
    task = Task(config)
    learner = ppo_lag.PPOLag(config, task)
    steps = random_steps(reward_unit, cost_unit)
    learner.set_units(**value_units(steps, task.limits, config.advantage.gamma, task.episode_length))
    torch.manual_seed(1)
    for _ in range(2):
        learner.observe(steps, cost_unit * torch.tensor([[40.0]]), 0)
        for batches in learner.epochs(steps.clone()):
            for batch in batches:
                metrics = learner.update(batch)
    return learner, metrics | learner.metrics()


@pytest.mark.parametrize(("reward_unit", "cost_unit"), [(2.0**10, 2.0**-10), (2.0**-10, 2.0**10)])
def test_ppo_takes_the_same_course_in_other_units(reward_unit, cost_unit):
    learner, metrics = ppo_course(1.0, 1.0)
    other, measured = ppo_course(reward_unit, cost_unit)
    for name, parameter in other.policy.named_parameters():
        torch.testing.assert_close(parameter, learner.policy.get_parameter(name), rtol=0, atol=1e-5)
    for name, scale in [("loss_value_reward", reward_unit**2), ("loss_value_cost", cost_unit**2)]:
        torch.testing.assert_close(measured[name] / scale, metrics[name], rtol=1e-4, atol=0)
    ratio = cost_unit / reward_unit
    torch.testing.assert_close(measured["lambda"] * ratio, metrics["lambda"], rtol=1e-4, atol=0)
