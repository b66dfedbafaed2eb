"""The critic learner against the same steps written out with plain modules."""

import copy

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from safe_components import keys
from safe_components.critics import ConstrainedQEnsemble, CriticLearner, QEnsemble, Signal

GAMMA, LR, POLYAK = 0.9, 1e-2, 0.75
# A rounding of float64 is 1e-16 of a number of order 1. Sums over 16 transitions repeat it, and Adam's
# division by gradients of 1e-2 amplifies it: four steps leave less than a thousand of them.
ROUNDING = {"rtol": 0, "atol": 1e-13}


def parts(device="cpu", costs=2):
    torch.manual_seed(0)
    critic = ConstrainedQEnsemble(3, 2, 2, 1, costs, hidden_sizes=(8,)).double().to(device)
    policy = TensorDictModule(nn.Linear(3, 2).double().to(device), ["observation"], ["action"])
    return critic, policy


def batch_of(seed, device="cpu", costs=2, size=16):
    torch.manual_seed(seed)
    following = TensorDict(
        observation=torch.randn(size, 3, dtype=torch.float64),
        reward=torch.randn(size, 1, dtype=torch.float64),
        cost=torch.rand(size, costs, dtype=torch.float64),
        terminated=torch.rand(size, 1) < 0.3,
        batch_size=size,
    )
    observation, action = (torch.randn(size, n, dtype=torch.float64) for n in (3, 2))
    return TensorDict(observation=observation, action=action, next=following, batch_size=size).to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_an_update_is_a_step_of_adam_and_of_the_target(device):
    critic, policy = parts(device)
    plain, target = copy.deepcopy(critic), copy.deepcopy(critic)
    optim = torch.optim.Adam(plain.parameters(), lr=LR, eps=1e-20)
    learner = CriticLearner(critic, policy, gamma=GAMMA, lr=LR, polyak=POLYAK)
    for seed in range(4):
        batch = batch_of(seed, device)
        metrics = learner.update(batch)
        following = batch["next"]
        with torch.no_grad():
            q_reward, q_cost = target(following["observation"], policy.module(following["observation"]))
            discount = GAMMA * (~following["terminated"]).double()
            targets = (
                following["reward"] + discount * q_reward.amin(0),
                following["cost"] + discount * q_cost.mean(0),
            )
        values = plain(batch["observation"], batch["action"])
        losses = [(q - y).square().mean(1).sum() for q, y in zip(values, targets, strict=True)]
        optim.zero_grad()
        sum(losses).backward()
        optim.step()
        with torch.no_grad():
            for old, new in zip(target.parameters(), plain.parameters(), strict=True):
                old.copy_(POLYAK * old + (1 - POLYAK) * new)
        expected = {
            "q_reward": values[0].mean((0, 1)),
            "loss_q_reward": losses[0],
            "q_cost": values[1].mean((0, 1)),
            "loss_q_cost": losses[1],
        }
        assert list(metrics) == list(expected)
        for name, value in expected.items():
            assert not metrics[name].requires_grad
            torch.testing.assert_close(metrics[name], value.detach(), **ROUNDING)
    for name, value in plain.ensemble.named_parameters():
        torch.testing.assert_close(critic.ensemble.get_parameter(name), value, **ROUNDING)
    for name, value in target.ensemble.named_parameters():
        followed = learner.target_params["ensemble", name].data
        torch.testing.assert_close(followed, value.data, **ROUNDING)


@pytest.mark.parametrize("device", DEVICES)
def test_its_state_and_its_optimizers_continue_training(device):
    one, two = (CriticLearner(*parts(device), gamma=GAMMA) for _ in range(2))
    for seed in range(3):
        one.update(batch_of(seed, device))
    two.load_state_dict(one.state_dict())
    two.optim.load_state_dict(copy.deepcopy(one.optim.state_dict()))  # as from a file: not the same tensors
    for learner in (one, two):
        learner.update(batch_of(3, device))
    states = one.state_dict(), two.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any("target" in name for name in states[0])


def test_only_the_critic_is_trained():
    critic, policy = parts()
    learner = CriticLearner(critic, policy)
    assert learner.critic is critic
    assert {id(p) for p in learner.parameters()} == {id(p) for p in critic.parameters()}
    trained = {id(p) for group in learner.optim.param_groups for p in group["params"]}
    assert trained == {id(p) for p in critic.parameters()}


def test_one_signal_has_its_own_metrics():
    _, policy = parts()
    critic = QEnsemble(3, 2, 2, 2, hidden_sizes=(8,)).double()
    learner = CriticLearner(critic, policy, Signal(keys.COST, aggregate="max"), gamma=GAMMA)
    metrics = learner.update(batch_of(0))
    assert {name: value.shape for name, value in metrics.items()} == {"q_cost": (2,), "loss_q_cost": ()}


def test_without_costs_the_reward_is_learned_alone():
    learner = CriticLearner(*parts(costs=0), gamma=GAMMA)
    metrics = learner.update(batch_of(0, costs=0))
    assert list(metrics) == ["q_reward", "loss_q_reward"]
    assert metrics["loss_q_reward"] > 0.0


def test_a_loss_of_one_number_for_each_transition_cannot_be_stepped_on():
    with pytest.raises(ValueError, match="reduction='none' leaves no single loss"):
        CriticLearner(None, None, None, reduction="none")
