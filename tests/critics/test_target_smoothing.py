"""Target policy smoothing against its formula and TorchRL's TD3."""

import math

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Normal
from torchrl.modules import ValueOperator
from torchrl.objectives import SoftUpdate, TD3Loss

from safe_components.critics import REWARD_SIGNAL, QEnsemble, TargetSmoothing, TDLoss


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_clipped_normal_in_units_of_the_half_range(dtype, device):
    torch.manual_seed(0)
    smooth = TargetSmoothing([-1.0, 0.0], [1.0, 8.0], std=0.2, noise_clip=0.3).to(device, dtype)
    action = torch.tensor([0.0, 4.0], dtype=dtype, device=device).expand(40_000, 2)
    noise = (smooth(action) - action) / torch.tensor([1.0, 4.0], dtype=dtype, device=device)
    assert noise.dtype == dtype
    assert noise.abs().amax().item() == pytest.approx(0.3)  # approx's 1e-6: five roundings of float32
    # The share at either clip is P(|ξ| > 1.5) = 0.1336; standard error sqrt(.13 * .87 / 80000) = 0.0012.
    clipped = (noise.abs() > 0.2999).to(dtype).mean().item()
    assert clipped == pytest.approx(2 * Normal(0.0, 1.0).cdf(torch.tensor(-1.5)).item(), abs=0.006)
    inside = noise[noise.abs() < 0.2]
    # A normal restricted to one deviation has variance 1 - 2 φ(1) / (2 Φ(1) - 1) of its own.
    share = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(1 / math.sqrt(2))
    # Some 54,600 draws have a standard error of 0.3 percent; this is six of them.
    assert inside.std().item() == pytest.approx(0.2 * math.sqrt(share), rel=0.02)


def test_smoothed_actions_stay_inside_the_bounds():
    torch.manual_seed(0)
    smooth = TargetSmoothing([-1.0], [1.0])
    moved = smooth(torch.full((1000, 1), 0.9))
    assert moved.amax() == 1.0
    assert 0.4 - 1e-6 <= moved.amin() < 0.6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observation, action):
        return self.layers(torch.cat([observation, action], -1))


class Members(nn.Module):
    def __init__(self, *nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, observation, action):
        return torch.stack([net(observation, action) for net in self.nets])


def transitions(n=64):
    return TensorDict(
        observation=torch.randn(n, 3),
        action=torch.rand(n, 2),
        next=TensorDict(
            observation=torch.randn(n, 3),
            reward=torch.randn(n, 1),
            terminated=torch.rand(n, 1) < 0.3,
            done=torch.ones(n, 1, dtype=torch.bool),
            batch_size=n,
        ),
        batch_size=n,
    )


def test_td_loss_with_smoothing_is_torchrls_td3():
    torch.manual_seed(0)
    actor = TensorDictModule(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), ["observation"], ["action"])
    nets = [Net(), Net()]
    values = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    low, high = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])
    theirs = TD3Loss(actor, values, bounds=(low, high), loss_function="l2")
    theirs.make_value_estimator(gamma=0.9)
    SoftUpdate(theirs, tau=0.1)
    ours = TDLoss(
        Members(*nets),
        actor,
        REWARD_SIGNAL,
        gamma=0.9,
        policy_params=theirs.target_actor_network_params,
        smooth_action=TargetSmoothing(low, high),
    )
    SoftUpdate(ours, tau=0.1)
    with torch.no_grad():  # the target actor is not the actor
        for p in actor.parameters():
            p.add_(1.0)
    batch = transitions()
    torch.manual_seed(1)
    expected, meta = theirs.value_loss(batch)
    torch.manual_seed(1)
    out = ours(batch)
    # A rounding of float32 is 6e-8 of a number of order 1; means over 64 transitions keep some 10 of them.
    torch.testing.assert_close(out["loss_q"], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(out["target_mean"], meta["target_value"].mean().reshape(1), rtol=0, atol=1e-6)
    ours.__dict__["smooth_action"] = None
    assert (ours(batch)["loss_q"] - expected).abs() > 1e-4


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (([1.0], [1.0]), {}, "low < high"),
        (([0.0], [math.inf]), {}, "finite"),
        (([0.0, 0.0], [1.0]), {}, r"\[a\]"),
        (([0.0], [1.0]), {"std": -0.1}, "std=-0.1"),
        (([0.0], [1.0]), {"noise_clip": -0.1}, "noise_clip=-0.1"),
    ],
)
def test_bad_settings_are_named(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        TargetSmoothing(*args, **kwargs)


def test_smoothing_a_soft_target_is_refused():
    class Actor(TensorDictModule):
        def get_dist(self, tensordict):
            raise AssertionError

    actor = Actor(nn.Linear(3, 2), ["observation"], ["action"])
    critic = QEnsemble(3, 2, 1, hidden_sizes=(4,))
    with pytest.raises(ValueError, match="smooth_action"):
        TDLoss(critic, actor, REWARD_SIGNAL, entropy_coef=0.1, smooth_action=TargetSmoothing([-1.0], [1.0]))
