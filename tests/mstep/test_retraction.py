"""Bringing the policy back to the border of the trust region."""

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from torchrl.objectives import HardUpdate

from safe_components.mstep import HardTrustRegion, MStepLoss, Retraction
from safe_components.policies import gaussian_policy


def moved(device, dtype, size):
    """An M-step whose policy has moved away from its reference, and a batch to measure how far."""
    torch.manual_seed(0)
    policy = gaussian_policy(3, action_low=[-1.0, -1.0], action_high=[1.0, 1.0])
    loss = MStepLoss(policy, HardTrustRegion(0.01, 0.001)).to(device, dtype)
    HardUpdate(loss)
    particles = {"action": torch.randn(64, 8, 2), "weight": torch.full((64, 8), 1 / 8)}
    batch = TensorDict(observation=torch.randn(64, 3), particles=particles, batch_size=64).to(device)
    with torch.no_grad():
        for parameter in loss.policy_params.values(True, True):
            parameter.add_(size * torch.randn(parameter.shape).to(parameter))
    return loss, batch.apply(lambda entry: entry.to(dtype))


def parameters(params):
    return torch.cat([value.detach().flatten() for value in params.values(True, True)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shrink", ["mean", "cov"])
def test_the_divergence_comes_back_to_its_bound(shrink, dtype, device):
    loss, batch = moved(device, dtype, 0.004)
    out = loss(batch)
    bounds = {"mean": (out["kl_mean"].item() / 9, 10.0), "cov": (10.0, out["kl_cov"].item() / 9)}[shrink]
    share = Retraction(loss, *bounds).step(out["kl_mean"], out["kl_cov"])
    assert share.item() == pytest.approx(1 / 3, rel=1e-5)
    after = loss(batch)
    # Quadratic up to terms of third order in a step of less than one per cent.
    bound = bounds[0] if shrink == "mean" else bounds[1]
    assert after[f"kl_{shrink}"].item() == pytest.approx(bound, rel=0.15)


def test_it_keeps_the_direction_and_leaves_the_reference_alone():
    loss, batch = moved("cpu", torch.float64, 0.02)
    reference, before = parameters(loss.target_policy_params), parameters(loss.policy_params)
    out = loss(batch)
    share = Retraction(loss, out["kl_mean"].item() / 4, 10.0).step(out["kl_mean"], out["kl_cov"])
    torch.testing.assert_close(parameters(loss.target_policy_params), reference, rtol=0, atol=0)
    expected = reference + share * (before - reference)
    torch.testing.assert_close(parameters(loss.policy_params), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kl", [0.0, 1e-30, 0.009])
def test_inside_the_bounds_nothing_changes(kl):
    loss, _ = moved("cpu", torch.float32, 0.02)
    before = parameters(loss.policy_params)
    assert Retraction(loss, 0.01, 0.001).step(torch.tensor(kl), torch.tensor(0.0)).item() == 1.0
    torch.testing.assert_close(parameters(loss.policy_params), before, rtol=0, atol=0)


def test_what_is_not_finite_is_not_hidden():
    loss, _ = moved("cpu", torch.float32, 0.02)
    assert Retraction(loss, 0.01, 0.001).step(torch.tensor(torch.nan), torch.tensor(0.0)).isnan()


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.1, -1.0), (torch.inf, 0.1), (0.1, torch.nan)])
def test_bounds_must_be_positive(bounds):
    loss, _ = moved("cpu", torch.float32, 0.004)
    with pytest.raises(ValueError, match=r"must be positive and finite \(nats\)"):
        Retraction(loss, *bounds)
