"""Actor losses at a price without unit."""

import pytest
import torch
from tensordict import TensorDict

from safe_components.critics import Polyak
from safe_components.lagrangian import DeterministicLagLoss, SACLagLoss
from safe_components.policies import deterministic_policy, tanh_gaussian_policy


class Critic(torch.nn.Module):
    """Values whose slope over the action is known; those of the cost also differ much from state to state."""

    def __init__(self, reward, cost):
        super().__init__()
        self.reward, self.cost = reward, cost

    def forward(self, observation, action):
        value = observation[..., :1] + action[..., :1]
        cost = 3.0 * action[..., :1] + 50.0 * observation[..., 1:2]
        return (self.reward * value).unsqueeze(0), (self.cost * cost).unsqueeze(0)


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
    batch = TensorDict(observation=torch.randn(40, 3), batch_size=40)
    out = loss(kind, Critic(reward, cost), 0.7)(batch)
    assert out["lam"].item() == pytest.approx(0.7 * reward / (3.0 * cost), rel=1e-5)
    with torch.no_grad():
        assert loss(kind, Critic(reward, cost), 0.7)(batch)["lam"].item() == pytest.approx(
            out["lam"].item(), rel=1e-5
        )


@pytest.mark.parametrize("kind", ["sac", "deterministic"])
def test_at_a_price_of_one_a_cost_pushes_as_hard_as_the_reward(kind):
    """The reward pushes the action up, and the cost pushes it down with three times the slope."""
    batch = TensorDict(observation=torch.randn(40, 3), batch_size=40)
    pushes = []
    for price in (0.0, 1.0):
        torch.manual_seed(0)
        actor = loss(kind, Critic(1.0, 1.0), price)
        if kind == "sac":
            actor.log_alpha.data.fill_(-30.0)
        actor.normalize = False
        actor(batch)["loss_actor"].backward()
        pushes.append(torch.stack([p.grad.norm() for p in actor.parameters() if p.grad is not None]))
    assert pushes[1].max() < 1e-5 * pushes[0].max()


def test_a_cost_that_is_the_same_everywhere_has_no_multiplier():
    batch = TensorDict(observation=torch.randn(40, 3), batch_size=40)
    out = loss("deterministic", Critic(1.0, 0.0), 0.7)(batch)
    assert out["lam"].tolist() == [0.0]
    assert out["loss_actor"].isfinite()
