"""The defaults train on where limits, costs or rewards are extreme, and the price goes the right way."""

import gymnasium
import numpy as np
import pytest
from cost_envs import Corridor

import cvpo
import ppo_lag
import sac_lag
import td3_lag


class Extreme(Corridor):
    """The corridor with its reward times a number."""

    def __init__(self, scale=1.0, **options):
        super().__init__(**options)
        self.scale = scale

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, self.scale * reward, *rest


def beyond(x):
    return int(x > 1)


# Reward scale, cost of a step, limit; and where the price goes. Episodes have 8 steps.
TASKS = {
    "limit-0": (1.0, beyond, 0.0, None),
    "never-a-cost": (1.0, lambda x: 0, 2.0, -1),
    "always-a-cost": (1.0, lambda x: 1, 2.0, 1),
    "limit-0-always-a-cost": (1.0, lambda x: 1, 0.0, 1),
    "limit-0-never-a-cost": (1.0, lambda x: 0, 0.0, None),
    "small-costs": (1.0, lambda x: 1e-3 * beyond(x), 2e-3, None),
    "large-costs": (1.0, lambda x: 1e4 * beyond(x), 2e4, None),
    "small-rewards": (1e-3, beyond, 2.0, None),
    "large-rewards": (1e4, beyond, 2.0, None),
}
for name, (scale, cost, *_) in TASKS.items():
    gymnasium.register(
        f"Extreme-{name}-v0", Extreme, max_episode_steps=8, kwargs={"scale": scale, "cost": cost}
    )
QUICK = "limit-0-always-a-cost"  # the others take the slow suite's time
CASES = [pytest.param(cvpo, name, marks=() if name == QUICK else pytest.mark.slow) for name in TASKS]
CASES += [
    pytest.param(recipe, name, marks=pytest.mark.slow)
    for recipe in (sac_lag, td3_lag, ppo_lag)
    for name in ("limit-0", "always-a-cost")
]


@pytest.mark.parametrize(
    ("recipe", "name"), CASES, ids=lambda case: case if isinstance(case, str) else case.Config.recipe
)
def test_the_defaults_train_on(recipe, name, training):
    *_, limit, goes = TASKS[name]
    task = ("--env.id", f"Extreme-{name}-v0", "--env.max-episode-steps", 8, "--cost-limit", limit)
    rows, learner = training(recipe, *task, "--total-frames", 800)
    price = rows["price"][np.isfinite(rows["price"])]
    assert len(price)
    assert ((price > 0) & (price <= 1.5)).all()
    if goes is not None:
        assert np.sign(price[-1] - price[0]) == goes
    for column in ("lambda", "episode_cost", *(name for name in rows if name.startswith("loss"))):
        assert np.isfinite(rows[column][-1]), column
    assert all(parameter.isfinite().all() for parameter in learner.parameters())
