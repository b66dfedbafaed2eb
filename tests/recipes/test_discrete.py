"""Discrete and MultiDiscrete action spaces: their actions, a short training on each, and what is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from small_runs import small

import cvpo
import discrete_cvpo
import evaluate
import ppo_lag
import sac_lag
import td3_lag
from safe_components.envs import check_env, make_env
from safe_components.training import Task, load_policy

PUSHES = ("--env.id", "own_parts:Pushes-v0", "--cost-limit", 10)
CART = ("--env.id", "CartPole-v1", "--cost-limit", "none")


def action_set(*flags):
    return Task(small(discrete_cvpo, *flags)).action_set(levels=3)


def test_the_actions_of_each_space_are_enumerated():
    assert action_set(*CART)[0].tolist() == [[1, 0], [0, 1]]
    actions, bounds = action_set(*PUSHES)
    pairs = [(back, strength) for back in range(2) for strength in range(3)]
    assert [(row[:2].index(1), row[2:].index(1)) for row in actions.tolist()] == pairs
    assert (actions.sum(-1) == 2).all()
    assert bounds["action_high"].tolist() == [1] * 5
    actions, bounds = action_set()  # PointCircle's actions are continuous
    assert actions.shape == (9, 2)
    assert bounds["action_low"].tolist() == [-1, -1]


def test_a_multidiscrete_action_reaches_the_environment_as_its_numbers():
    env = make_env("own_parts:Pushes-v0", num_envs=2, seed=0)
    state = env.reset()
    action = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0]])  # +0.4 and -0.2
    before = state["observation"][:, 0].clone()
    after = env.step(state.set("action", action))["next", "observation"][:, 0]
    torch.testing.assert_close(after - before, torch.tensor([0.4, -0.2]))


def test_a_multidiscrete_environment_keeps_the_laws():
    assert check_env("own_parts:Pushes-v0", num_envs=2).failures == ()


@pytest.mark.parametrize(
    "flags", [PUSHES, pytest.param(CART, marks=pytest.mark.slow)], ids=["MultiDiscrete", "Discrete"]
)
def test_a_discrete_task_is_trained_evaluated_and_loaded(training, tmp_path, capsys, flags):
    rows, learner = training(discrete_cvpo, *flags, "--total-frames", 800)
    learned = np.isfinite(rows["eta"])
    assert learned.sum() >= 1
    assert (rows["estep_kl"][learned] <= 0.1 + 1e-6).all()
    assert (rows["entropy"][learned] <= np.log(len(learner.actions)) + 1e-6).all()
    evaluate.run([str(tmp_path / "run"), "--episodes", "2"])
    assert "sampled actions" in capsys.readouterr().out
    policy = load_policy(tmp_path / "run")
    action = policy(torch.zeros(3, len(policy.module.loc)))
    assert (action[:, None] == learner.actions).all(-1).any(-1).all()


class Wide(gymnasium.Env):
    """Has the actions that a test asks for."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {"cost": 0.0}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            gymnasium.spaces.MultiDiscrete([20] * 3),
            r"has 8,000 actions \(the product of 20 x 20 x 20\), and at",
        ),
        (gymnasium.spaces.Discrete(5000), "has 5,000 actions .* at most 4,096 can all be scored: let each"),
        (
            gymnasium.spaces.Box(-1, 1, (8,)),
            r"6,561 actions \(3 levels in 8 dimensions\).* actions such as cvpo",
        ),
        (gymnasium.spaces.Discrete(1), "has a single action .*: there is nothing to choose"),
    ],
    ids=["product", "many", "grid", "one"],
)
def test_too_many_or_too_few_actions_are_refused(space, said):
    gymnasium.register("Wide-v0", entry_point=lambda: Wide(space), max_episode_steps=50)
    try:
        with pytest.raises(ValueError, match=f"Wide-v0 {said}|Wide-v0 has {said}"):
            discrete_cvpo.main(small(discrete_cvpo, "--env.id", "Wide-v0"))
    finally:
        del gymnasium.registry["Wide-v0"]


@pytest.mark.parametrize("recipe", [cvpo, sac_lag, td3_lag, ppo_lag])
def test_a_recipe_for_continuous_actions_names_the_one_for_discrete_ones(recipe, tmp_path):
    config = small(recipe, *CART, "--run-dir", tmp_path / "run")
    said = f"{config.recipe} needs continuous actions, but CartPole-v1 has discrete ones: use discrete_cvpo"
    with pytest.raises(ValueError, match=said):
        recipe.main(config)
    assert not (tmp_path / "run").exists()
