"""Gaussian policies against their formulas, torch.distributions and TorchRL's exploration modes."""

import math

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential
from torch.distributions import MultivariateNormal
from torchrl.envs.utils import ExplorationType, set_exploration_type

from safe_components.policies import CholeskyNormal, GaussianNet, gaussian_policy

LOW, HIGH = [-1.0, 0.0, -5.0], [1.0, 4.0, -4.0]


def make_net(covariance="full", **kwargs):
    return GaussianNet(4, LOW, HIGH, covariance=covariance, hidden_sizes=(16, 16), **kwargs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_factor_is_lower_triangular_above_the_floor_and_mean_inside(covariance, dtype, device):
    torch.manual_seed(0)
    net = make_net(covariance).to(device, dtype)
    with torch.no_grad():
        net.net[-1].weight.mul_(1e4)  # far from the initial policy, into saturation
    loc, tril = net(torch.randn(200, 4, dtype=dtype, device=device) * 10)
    assert loc.dtype == tril.dtype == dtype
    low, high = (torch.tensor(b, dtype=dtype, device=device) for b in (LOW, HIGH))
    assert (loc >= low).all()
    assert (loc <= high).all()
    assert (loc - low).amin() < 1e-3  # the network did reach the bounds
    assert torch.equal(tril, tril.tril())
    diagonal = tril.diagonal(dim1=-2, dim2=-1)
    floor = 0.01 * (high - low) / 2
    assert (diagonal >= floor * (1 - 1e-5)).all()
    torch.testing.assert_close(net.std_floor, floor)
    off_diagonal = (tril - torch.diag_embed(diagonal)).abs().amax()
    assert (off_diagonal > 1.0) == (covariance == "full")


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_initial_policy_is_centered_with_the_asked_deviation(covariance):
    torch.manual_seed(0)
    loc, tril = make_net(covariance, init_std=0.3)(torch.randn(100, 4))
    center, half = torch.tensor([0.0, 2.0, -4.5]), torch.tensor([1.0, 2.0, 0.5])
    assert ((loc - center) / half).abs().amax() < 0.02
    torch.testing.assert_close(tril / half, 0.3 * torch.eye(3).expand(100, 3, 3), atol=0.02, rtol=0.0)


def test_factor_follows_the_documented_formula():
    torch.manual_seed(0)
    net = make_net().double()
    observation = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        net.net[-1].weight.mul_(50.0)
        raw = net.net(observation)
        loc, tril = net(observation)
    half, shift = [1.0, 2.0, 0.5], math.log(math.expm1(0.5 - 0.01))
    for i in range(3):
        assert loc[i].item() == pytest.approx([0.0, 2.0, -4.5][i] + half[i] * math.tanh(raw[i]), rel=1e-6)
        diagonal = half[i] * (0.01 + math.log1p(math.exp(raw[3 + i] + shift)))
        assert tril[i, i].item() == pytest.approx(diagonal, rel=1e-6)
    for index, (i, j) in enumerate([(1, 0), (2, 0), (2, 1)]):
        assert tril[i, j].item() == pytest.approx(half[i] * raw[6 + index].item(), rel=1e-6)


@pytest.mark.parametrize("sample_shape", [(), (7,), (7, 3)])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_distribution_equals_torchs_multivariate_normal(batch, sample_shape):
    torch.manual_seed(0)
    loc = torch.randn(*batch, 3, dtype=torch.float64)
    tril = torch.randn(*batch, 3, 3, dtype=torch.float64).tril(-1) + 0.5 * torch.eye(3, dtype=torch.float64)
    ours, theirs = CholeskyNormal(loc, tril), MultivariateNormal(loc, scale_tril=tril)
    torch.manual_seed(1)
    sample = ours.rsample(sample_shape)
    torch.manual_seed(1)
    torch.testing.assert_close(sample, theirs.rsample(sample_shape), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.log_prob(sample), theirs.log_prob(sample), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_log_prob_and_samples_differentiate_to_the_parameters():
    torch.manual_seed(0)
    loc = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    tril = (torch.randn(2, 3, 3, dtype=torch.float64).tril(-1) + torch.eye(3)).requires_grad_()
    value = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: CholeskyNormal(m, s.tril()).log_prob(value), (loc, tril))

    def sample(m, s):
        torch.manual_seed(1)
        return CholeskyNormal(m, s).rsample((4,))

    assert torch.autograd.gradcheck(sample, (loc, tril))


@pytest.mark.parametrize("mode", list(ExplorationType))
def test_exploration_modes(mode):
    torch.manual_seed(0)
    policy = gaussian_policy(4, LOW, HIGH, hidden_sizes=(8,))
    assert isinstance(policy, ProbabilisticTensorDictSequential)
    with set_exploration_type(mode), torch.no_grad():
        data = policy(TensorDict({"observation": torch.randn(50, 4)}, [50]))
    drawn = not torch.equal(data["action"], data["loc"])
    assert drawn == (mode is ExplorationType.RANDOM)
    assert data["action"].shape == (50, 3)
    assert data["scale_tril"].shape == (50, 3, 3)


def test_samples_are_those_of_the_gaussian_and_are_not_clipped():
    torch.manual_seed(0)
    policy = gaussian_policy(4, [-1.0], [1.0], hidden_sizes=(8,), init_std=2.0)
    with torch.no_grad():
        action = policy(TensorDict({"observation": torch.zeros(20_000, 4)}, [20_000]))["action"]
    # Standard error of a standard deviation from n samples: std / sqrt(2 n) = 0.01.
    assert action.std().item() == pytest.approx(2.0, abs=0.05)
    assert action.abs().amax() > 1.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"covariance": "spherical"}, "full, diagonal"),
        ({"min_std": 0.6}, "min_std=0.6"),
        ({"min_std": 0.0}, "min_std=0.0"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gaussian_policy(4, LOW, HIGH, **kwargs)
