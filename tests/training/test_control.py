"""The price of a run holds the costs at a share of their limits."""

import pytest
import torch
from tensordict import TensorDict

from safe_components.training import CostControl, EnvConfig, RangeControl, RecipeConfig, Task
from safe_components.training.options import PriceConfig

ENV = {"id": "PointCircle", "num_envs": 1, "frame_skip": 1, "max_episode_steps": 10}


def steps_of(limits, costs):
    """Steps ``[n, 1]`` that end n episodes with these costs, each spread evenly over ten steps."""
    limits, costs = (torch.tensor(values).view(-1, 1, 1) for values in (limits, costs))
    shape = costs.shape
    ended = {"done": torch.ones(shape, dtype=torch.bool), "step_count": torch.full(shape, 10.0)}
    following = {"cost": costs / 10, "episode_cost": costs, **ended}
    return TensorDict({"cost_limit": limits, "next": following}, shape[:2])


@pytest.mark.parametrize(("share", "moves"), [(0.5, 0), (0.4, -1), (1.0, 1)])
def test_a_price_stands_still_at_the_targets_share_of_the_limit(share, moves):
    """One price for all, and a price for each limit of a range; the costs are this share of the limit."""
    multiplier = PriceConfig(target=0.5, rate=1.0, kp=0.0)
    one = RecipeConfig(env=EnvConfig(**ENV))
    control = CostControl(multiplier, one, Task(one), 1000)
    ranged = RecipeConfig(env=EnvConfig(**ENV, limits=(20.0, 80.0)))
    prices = RangeControl(multiplier, ranged, Task(ranged), 1000)
    first, all_first = control(), prices.prices.prices.lam.clone()
    control.observe(torch.tensor([25.0]), steps_of([25.0], [share * 25.0]), torch.empty(0, 1))
    limits = [20.0, 40.0, 60.0, 80.0]  # those of the knots
    prices.observe(steps_of(limits, [share * limit for limit in limits]))
    change, changes = (control() - first).sign(), (prices.prices.prices.lam - all_first).sign()
    assert change.tolist() == [moves]
    assert changes.tolist() == [moves] * 4
