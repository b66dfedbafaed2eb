"""Reward and cost critics as one ensemble, against two ensembles and two losses on the same weights."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import SoftUpdate

from safe_components import keys
from safe_components.critics import ConstrainedQEnsemble, ConstrainedTDLoss, QEnsemble, TDLoss
from safe_components.policies import gaussian_policy

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BOUNDS = {"action_low": [-1.0, -2.0], "action_high": [1.0, 2.0]}


def critics(costs, device="cpu", **kwargs):
    """The ensemble of both, and one each with the same weights."""
    torch.manual_seed(0)
    settings = {"hidden_sizes": (12, 8), **BOUNDS, **kwargs}
    both = ConstrainedQEnsemble(3, 2, 2, 3, costs, **settings).double().to(device)
    reward, cost = QEnsemble(3, 2, 2, 1, **settings), QEnsemble(3, 2, 3, costs, **settings)
    for part, members in ((reward, slice(0, 2)), (cost, slice(2, 5))):
        part.double().to(device)
        for name, value in part.named_parameters():
            whole = both.get_parameter(name)[members]
            value.data = whole[..., : value.shape[-1]].detach().clone()
    return both, reward, cost


def batch_of(states, costs, device="cpu"):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(states, *shape, generator=generator, dtype=torch.float64)

    following = {"observation": normal(3), "reward": normal(1), "cost": normal(costs)}
    following["terminated"] = (torch.arange(states) % 3 == 0).unsqueeze(-1)
    transitions = {"observation": normal(3), "action": normal(2), "next": following}
    return TensorDict(transitions, [states], device=device).auto_batch_size_()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("particles", [None, 7, 600])
@pytest.mark.parametrize("costs", [1, 3])
def test_parts_are_two_ensembles(costs, particles, layer_norm, device):
    both, reward, cost = critics(costs, device, layer_norm=layer_norm)
    generator = torch.Generator().manual_seed(2)
    shape = (5, 2) if particles is None else (5, particles, 2)
    observation = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(device)
    action = 2 * torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            values = both.split(both(observation, action))
            expected = reward(observation, action), cost(observation, action)
            torch.testing.assert_close(values, expected)
            torch.testing.assert_close(both.reward()(observation, action), expected[0])
            torch.testing.assert_close(both.cost()(observation, action), expected[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("costs", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cost_aggregate": "conservative", "cost_std_coef": 0.7, "reward_aggregate": "mean"},
        {"num_action_samples": 4, "loss_function": "smooth_l1"},
        {"entropy_coef": 0.3},
        {"bootstrap_terminal": True},
        {"bootstrap_terminal_cost": True, "weights": True},
    ],
    ids=lambda settings: "-".join(settings) or "defaults",
)
def test_loss_and_gradient_are_those_of_two_losses(settings, costs, device):
    settings = dict(settings)
    both, reward, cost = critics(costs, device)
    policy = gaussian_policy(3, *BOUNDS.values(), hidden_sizes=(8,)).double().to(device)
    batch = batch_of(6, costs, device)
    if settings.pop("weights", False):
        batch["_weight"] = torch.linspace(0.1, 1.0, 6, dtype=torch.float64, device=device)
    loss = ConstrainedTDLoss(both, policy, gamma=0.9, **settings)
    shared = {"gamma": 0.9, "num_action_samples": settings.get("num_action_samples", 1)}
    shared["loss_function"] = settings.get("loss_function", "l2")
    coef = settings.get("cost_std_coef", 0.5)
    losses = [
        TDLoss(
            reward,
            policy,
            aggregate=settings.get("reward_aggregate", "min"),
            std_coef=coef,
            entropy_coef=settings.get("entropy_coef", 0.0),
            bootstrap_terminal=settings.get("bootstrap_terminal", False),
            **shared,
        ),
        TDLoss(
            cost,
            policy,
            reward_key=keys.COST,
            aggregate=settings.get("cost_aggregate", "mean"),
            std_coef=coef,
            bootstrap_terminal=settings.get("bootstrap_terminal_cost", False),
            **shared,
        ),
    ]
    _ = [SoftUpdate(module, tau=0.1) for module in (loss, *losses)]

    def seeded(module):
        torch.manual_seed(3)  # the same next actions
        out = module(batch)
        out["loss_q"].backward()
        return out, batch["td_error"]

    out, priority = seeded(loss)
    parts, priorities = zip(*map(seeded, losses), strict=True)
    torch.testing.assert_close(out["loss_q_reward"], parts[0]["loss_q"].detach())
    torch.testing.assert_close(out["loss_q_cost"], parts[1]["loss_q"].detach())
    torch.testing.assert_close(out["loss_q"], out["loss_q_reward"] + out["loss_q_cost"])
    for name in ("td_error", "q_mean", "target_mean"):
        torch.testing.assert_close(out[name], torch.cat([part[name] for part in parts]))
    weighted = (2 * priorities[0] + 3 * costs * priorities[1]) / (2 + 3 * costs)
    torch.testing.assert_close(priority, weighted)
    for part, members in ((reward, slice(0, 2)), (cost, slice(2, 5))):
        for name, value in part.named_parameters():
            gradient = both.get_parameter(name).grad[members]
            width = value.shape[-1]
            torch.testing.assert_close(gradient[..., :width], value.grad)
            assert not gradient[..., width:].any()  # outputs that mean nothing


def test_a_deterministic_policy_is_called_and_smoothed():
    both, *_ = critics(1)
    policy = TensorDictModule(nn.Linear(3, 2).double(), ["observation"], ["action"])
    loss = ConstrainedTDLoss(both, policy, gamma=0.5, smooth_action=lambda action: action + 1.0)
    SoftUpdate(loss, tau=0.1)
    batch = batch_of(4, 1)
    following = batch["next"]
    with torch.no_grad():
        reward, cost = both.split(
            both(following["observation"], policy.module(following["observation"]) + 1.0)
        )
        alive = ~following["terminated"]
        expected = torch.cat(
            [
                following["reward"] + 0.5 * alive * reward.amin(0),
                following["cost"] + 0.5 * alive * cost.mean(0),
            ],
            -1,
        )
    torch.testing.assert_close(loss.target(batch), expected)


def test_parts_pass_gradients_to_their_members_alone():
    both, *_ = critics(2)
    both.cost()(torch.randn(4, 3).double(), torch.randn(4, 2).double()).sum().backward()
    assert not both.weight_1.grad[:2].any()
    assert both.weight_1.grad[2:].any()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_reward_members=0"):
        ConstrainedQEnsemble(3, 2, 0, 1)
    with pytest.raises(ValueError, match="num_cost_members=0"):
        ConstrainedQEnsemble(3, 2, 1, 0)
    both, *_ = critics(3)
    policy = TensorDictModule(nn.Linear(3, 2).double(), ["observation"], ["action"])
    with pytest.raises(ValueError, match="median"):
        ConstrainedTDLoss(both, policy, reward_aggregate="median")
    loss = ConstrainedTDLoss(both, policy)
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match=r"cost.* does not fit"):
        loss(batch_of(4, 2))
