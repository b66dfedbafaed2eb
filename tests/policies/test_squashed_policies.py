"""Squashed Gaussian and deterministic policies against torch.distributions and their formulas."""

import math

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import AdditiveGaussianModule

from safe_components.policies import TanhBounds, deterministic_policy, tanh_gaussian_policy

BOUNDS = [([-1.0, -1.0], [1.0, 1.0]), ([-1.0, 0.0], [1.0, 3.0])]
MAKERS = [tanh_gaussian_policy, deterministic_policy]


def states(n=50, dtype=torch.float32, device="cpu", scale=1.0):
    return TensorDict(observation=scale * torch.randn(n, 4, dtype=dtype, device=device), batch_size=n)


def disturbed(policy, scale=0.3):
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn_like(p))
    return policy


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_density_is_that_of_torchs_transformed_normal(low, high, dtype, device):
    torch.manual_seed(0)
    policy = disturbed(tanh_gaussian_policy(4, low, high, hidden_sizes=(16,))).to(device).to(dtype)
    batch = states(dtype=dtype, device=device)
    data, dist = policy.get_dist_params(batch.clone()), policy.get_dist(batch.clone())
    low, high = (torch.tensor(b, dtype=dtype, device=device) for b in (low, high))
    moves = [TanhTransform(cache_size=1), AffineTransform((high + low) / 2, (high - low) / 2, event_dim=1)]
    reference = TransformedDistribution(Independent(Normal(data["loc"], data["scale"]), 1), moves)
    action = reference.sample()
    # The reference inverts the tanh, which costs half the digits near the bounds.
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(dist.log_prob(action), reference.log_prob(action), **tolerance)
    torch.manual_seed(1)
    drawn, log_prob = dist.rsample_and_log_prob()
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, reference.rsample(), **tolerance)
    torch.testing.assert_close(log_prob, reference.log_prob(drawn), **tolerance)
    assert drawn.dtype == log_prob.dtype == dtype


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_actions_stay_inside_and_reach_the_bounds(make, low, high):
    torch.manual_seed(0)
    policy = disturbed(make(4, low, high, hidden_sizes=(16,)), scale=2.0)
    action = policy(states(500, scale=10.0))["action"]
    low, high = torch.tensor(low), torch.tensor(high)
    assert (action >= low).all()
    assert (action <= high).all()
    assert ((action - low).amin(0) < 1e-2 * (high - low)).all()
    assert ((high - action).amin(0) < 1e-2 * (high - low)).all()


def test_scale_has_the_asked_start_and_a_floor_with_a_gradient():
    torch.manual_seed(0)
    policy = tanh_gaussian_policy(4, [-1.0], [1.0], hidden_sizes=(16,), init_std=0.4, min_std=0.05)
    head = policy.module[0].module[0][-1]
    torch.testing.assert_close(
        policy.get_dist_params(states())["scale"], torch.full((50, 1), 0.4), rtol=0.02, atol=0.0
    )
    with torch.no_grad():
        head.bias[1] = -5.0
    scale = policy.get_dist_params(states())["scale"]
    shift = math.log(math.expm1(0.4 - 0.05))
    expected = 0.05 + math.log1p(math.exp(shift - 5.0))
    torch.testing.assert_close(scale, torch.full((50, 1), expected), rtol=0.01, atol=0.0)
    assert torch.autograd.grad(scale.sum(), head.bias)[0][1] > 0.0


@pytest.mark.parametrize("mode", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_exploration_modes(mode):
    torch.manual_seed(0)
    policy = tanh_gaussian_policy(4, [-1.0, 0.0], [1.0, 3.0], hidden_sizes=(8,))
    assert isinstance(policy, ProbabilisticTensorDictSequential)
    with set_exploration_type(mode), torch.no_grad():
        data = policy(states())
    quiet = torch.tensor([0.0, 1.5]) + torch.tensor([1.0, 1.5]) * data["loc"].tanh()
    assert torch.allclose(data["action"], quiet, atol=1e-5) == (mode is ExplorationType.DETERMINISTIC)


def test_deterministic_action_follows_its_formula():
    torch.manual_seed(0)
    policy = disturbed(deterministic_policy(4, [-1.0, 0.0], [1.0, 3.0], hidden_sizes=(8,))).double()
    batch = states(dtype=torch.float64)
    network, bounds = policy.module
    raw = network(batch["observation"])
    expected = torch.tensor([0.0, 1.5]) + torch.tensor([1.0, 1.5]) * torch.tanh(raw)
    torch.testing.assert_close(policy(batch)["action"], expected, rtol=1e-6, atol=1e-6)
    assert isinstance(bounds, TanhBounds)
    torch.testing.assert_close(bounds.half_range, torch.tensor([1.0, 1.5], dtype=torch.float64))


def test_noise_behind_it_explores_only_when_asked():
    torch.manual_seed(0)
    policy = deterministic_policy(4, [-1.0], [1.0], hidden_sizes=(8,))
    noise = AdditiveGaussianModule(Bounded(-1.0, 1.0, (1,)), sigma_init=0.2, sigma_end=0.2)
    batch = states(4000)
    quiet = policy(batch.clone())["action"]
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        loud = noise(policy(batch.clone()))["action"]
    # Standard error of a standard deviation from 4000 draws: 0.2 / sqrt(8000) = 0.0022.
    assert (loud - quiet).std().item() == pytest.approx(0.2, abs=0.01)
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        torch.testing.assert_close(noise(policy(batch.clone()))["action"], quiet)


@pytest.mark.parametrize(("init_std", "min_std"), [(0.5, 0.5), (1.0, 0.0), (math.inf, 0.1)])
def test_bad_deviations_are_named(init_std, min_std):
    with pytest.raises(ValueError, match=f"min_std={min_std}"):
        tanh_gaussian_policy(4, [-1.0], [1.0], init_std=init_std, min_std=min_std)
