"""The Gaussian divergence against torch.distributions and finite differences."""

import pytest
import torch
from devices import DEVICES
from torch.distributions import MultivariateNormal, kl_divergence

from safe_components.ops import gaussian_kl


def gaussians(n, condition, seed, device="cpu", dtype=torch.float64, batch=5):
    """Two Gaussians for each of ``batch`` states; eigenvalues spread evenly in log over ``condition``."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def factor():
        rotation = torch.linalg.qr(random(batch, n, n)).Q
        eigenvalues = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), n).double()
        return torch.linalg.cholesky(rotation * eigenvalues @ rotation.mT)

    values = (random(batch, n), factor(), random(batch, n), factor())
    return tuple(v.to(device, dtype) for v in values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("n", [1, 2, 6, 12])
def test_equals_torch_distributions(n, condition, device):
    loc_old, tril_old, loc, tril = gaussians(n, condition, seed=n, device=device)
    old = MultivariateNormal(loc_old, scale_tril=tril_old)
    kl_mean, kl_cov = gaussian_kl(loc_old, tril_old, loc, tril)
    mean = kl_divergence(old, MultivariateNormal(loc, scale_tril=tril_old))
    cov = kl_divergence(old, MultivariateNormal(loc_old, scale_tril=tril))
    torch.testing.assert_close(kl_mean, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(kl_cov, cov, rtol=1e-8, atol=1e-8)


def test_zero_at_equality_and_no_cancellation_next_to_it():
    loc, tril, _, _ = gaussians(12, 1e6, seed=0)
    kl_mean, kl_cov = gaussian_kl(loc, tril, loc, tril)
    assert kl_mean.abs().max() == 0
    # The factor's ratio with itself is the identity up to rounding times the factor's condition (1e3).
    assert kl_cov.abs().max() < 1e-12
    # Σ = exp(2δ) Σ_old has KL = n/2 (exp(-2δ) - 1 + 2δ), of order δ². Formed from log|.|, -n and the trace,
    # three numbers of order n, it would have a relative error of 1e-4 here.
    delta = 1e-6
    _, kl_cov = gaussian_kl(loc, tril, loc, tril * torch.tensor(delta).double().exp())
    exact = 12 * delta**2 * (1 - 2 * delta / 3)
    torch.testing.assert_close(kl_cov, torch.full_like(kl_cov, exact), rtol=1e-8, atol=1e-16)


def test_gradients_against_finite_differences():
    inputs = [v.requires_grad_() for v in gaussians(3, 10.0, seed=3, batch=2)]
    assert torch.autograd.gradcheck(gaussian_kl, inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_and_broadcast(device):
    values = gaussians(4, 100.0, seed=1, device=device)
    single = gaussian_kl(*(v.float() for v in values))
    double = gaussian_kl(*values)
    for a, b in zip(single, double, strict=True):
        assert a.dtype == torch.float32
        assert a.shape == (5,)
        # float32 rounding times the condition number of the factors.
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    many = gaussian_kl(*(v.expand(3, *v.shape) for v in values))
    torch.testing.assert_close(many[0][1], double[0])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"scale_tril \(2, 3\)"):
        gaussian_kl(torch.zeros(2, 3), torch.eye(3), torch.zeros(2, 3), torch.zeros(2, 3))
