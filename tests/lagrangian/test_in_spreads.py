"""Actor losses at a price without unit."""

import pytest
import torch
from tensordict import TensorDict

from safe_components.critics import Polyak
from safe_components.lagrangian import DeterministicLagLoss, SACLagLoss
from safe_components.policies import deterministic_policy, tanh_gaussian_policy


class Critic(torch.nn.Module):
    """Values with a known spread over the states."""

    def __init__(self, reward, cost):
        super().__init__()
        self.reward, self.cost = reward, cost

    def forward(self, observation, action):
        value = observation[..., :1] + action[..., :1]
        return (self.reward * value).unsqueeze(0), (self.cost * (value + observation[..., 1:2])).unsqueeze(0)


def loss(kind, critic, price):
    if kind == "sac":
        policy = tanh_gaussian_policy(3, [-1.0], [1.0])
        return SACLagLoss(policy, critic, lambda: torch.tensor([price]), in_spreads=True)
    policy = deterministic_policy(3, [-1.0], [1.0])
    actor = DeterministicLagLoss(policy, critic, lambda: torch.tensor([price]), in_spreads=True)
    Polyak(actor, eps=0.9)  # without an updater of the target policy TorchRL warns
    return actor


@pytest.mark.parametrize("kind", ["sac", "deterministic"])
@pytest.mark.parametrize(("reward", "cost"), [(1.0, 1.0), (1e3, 1.0), (1.0, 1e-3), (1e-2, 1e4)])
def test_the_multiplier_is_the_price_times_the_ratio_of_the_spreads(kind, reward, cost):
    found = []
    for scales in ((1.0, 1.0), (reward, cost)):
        torch.manual_seed(0)
        batch = TensorDict(observation=torch.randn(40, 3), batch_size=40)
        found.append(loss(kind, Critic(*scales), 0.7)(batch)["lam"].item())
    assert found[1] == pytest.approx(found[0] * reward / cost, rel=1e-4)


def test_a_cost_that_is_the_same_everywhere_has_no_multiplier():
    batch = TensorDict(observation=torch.randn(40, 3), batch_size=40)
    out = loss("deterministic", Critic(1.0, 0.0), 0.7)(batch)
    assert out["lam"].tolist() == [0.0]
    assert out["loss_actor"].isfinite()
