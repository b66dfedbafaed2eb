"""The M-step's formula against torch.distributions, and its fast twin against the formula."""

import math

import pytest
import torch
from devices import DEVICES
from torch.distributions import MultivariateNormal, kl_divergence

from safe_components.mstep import DecoupledTerms, _fused, decoupled_terms, log_likelihood

DOUBLE = torch.float64


def rotated_tril(*lead, size, condition):
    """Cholesky factors of covariances with eigenvalues over ``condition`` in random directions."""
    rotation = torch.linalg.qr(torch.randn(*lead, size, size, dtype=DOUBLE)).Q
    eigenvalues = torch.logspace(0, -math.log10(condition), size, dtype=DOUBLE)
    return torch.linalg.cholesky(rotation * eigenvalues @ rotation.mT)


def problem(*lead, size, condition=1.0, particles=16, dtype=DOUBLE, device="cpu"):
    """An old Gaussian with weighted particles drawn from it, and a new Gaussian near it.

    Returns the arguments of `decoupled_terms`. The new Gaussian has moved by a fifth of the old standard
    deviation. The weights of a state sum to 1 on average only.
    """
    torch.manual_seed(size)
    loc_old, tril_old = (
        torch.randn(*lead, size, dtype=DOUBLE),
        rotated_tril(*lead, size=size, condition=condition),
    )
    noise = torch.randn(*lead, particles, size, dtype=DOUBLE)
    action = loc_old.unsqueeze(-2) + noise @ tril_old.mT
    weight = torch.rand(*lead, particles, dtype=DOUBLE) * 2 / particles
    loc = loc_old + 0.2 * (tril_old @ torch.randn(*lead, size, 1, dtype=DOUBLE)).squeeze(-1)
    change = torch.eye(size, dtype=DOUBLE) + 0.2 * torch.randn(*lead, size, size, dtype=DOUBLE).tril()
    return [x.to(device, dtype) for x in (loc_old, tril_old, action, weight, loc, tril_old @ change)]


def fused_terms(loc_old, tril_old, action, weight, loc, tril):
    """All terms of the fast twin, the joint likelihood last."""
    constants = _fused.OldPolicy.of(loc_old, tril_old, action, weight, _fused.combination(loc))
    terms = _fused.decoupled_terms(constants, loc, tril)
    return *terms, _fused.joint_log_likelihood(constants, terms.fit_cov, loc, tril)


def plain_terms(loc_old, tril_old, action, weight, loc, tril):
    terms = decoupled_terms(loc_old, tril_old, action, weight, loc, tril)
    return *terms, log_likelihood(action, weight, loc, tril)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("condition", [1.0, 1e8])
@pytest.mark.parametrize("size", [1, 2, 6, 12])
def test_the_formula_equals_torch_distributions(size, condition, device):
    arguments = loc_old, tril_old, action, weight, loc, tril = problem(
        5, size=size, condition=condition, device=device
    )
    old = MultivariateNormal(loc_old, scale_tril=tril_old)
    mean = MultivariateNormal(loc, scale_tril=tril_old)
    cov = MultivariateNormal(loc_old, scale_tril=tril)
    new = MultivariateNormal(loc, scale_tril=tril)

    def fit(dist):
        return (weight * dist.log_prob(action.movedim(1, 0)).movedim(0, 1)).sum(1).mean()

    expected = [fit(mean), fit(cov), kl_divergence(old, mean).mean(), kl_divergence(old, cov).mean()]
    expected += [new.entropy().mean(), fit(new)]
    torch.testing.assert_close(plain_terms(*arguments), tuple(expected), rtol=1e-8, atol=1e-8)


def condition_number(tril):
    """Skeel's ``‖ |L⁻¹| |L| ‖_∞``: rounding in triangular solves and inverses is a few ``eps`` times this."""
    tril = tril.double()
    return float((torch.linalg.inv(tril).abs() @ tril.abs()).sum(-1).amax())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_law_the_fast_twin_equals_the_formula(size, condition, dtype, device):
    """Values and gradients of every term, against the formula in float64."""
    arguments = problem(2, 3, size=size, condition=condition, dtype=dtype, device=device)
    exact = [x.double() for x in arguments]
    variables, exact_variables = arguments[4:], exact[4:]
    for x in (*variables, *exact_variables):
        x.requires_grad_()
    bound = 4 * torch.finfo(dtype).eps * condition_number(arguments[1])
    names = [*DecoupledTerms._fields, "joint"]
    for name, ours, expected in zip(names, fused_terms(*arguments), plain_terms(*exact), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), expected, rtol=bound, atol=bound, msg=name)
        assert ours.requires_grad == (name != "entropy")
        if name == "entropy":
            continue
        options = {"retain_graph": True, "materialize_grads": True}
        ours = torch.autograd.grad(ours, variables, **options)
        expected = torch.autograd.grad(expected, exact_variables, **options)
        # A gradient is of order one in the coordinates in which the old policy is N(0, I).
        to_white = exact[1].mT
        loc, tril = zip(ours, expected, strict=True)
        loc = [(to_white @ g.double().unsqueeze(-1)) for g in loc]
        tril = [(to_white @ g.double()).tril() for g in tril]
        torch.testing.assert_close(*loc, rtol=bound, atol=bound, msg=f"gradient of {name} to loc")
        torch.testing.assert_close(*tril, rtol=bound, atol=bound, msg=f"gradient of {name} to scale_tril")


def test_the_written_out_gradient_equals_finite_differences():
    *old, loc, tril = problem(3, 2, size=3, particles=5)

    def weighted(loc, tril):
        *terms, _, joint = fused_terms(*old, loc, tril.tril())
        return sum(g * term for g, term in zip([0.3, -0.7, 2.0, 1.1, 0.4], [*terms, joint], strict=True))

    assert torch.autograd.gradcheck(weighted, (loc.requires_grad_(), tril.requires_grad_()), atol=1e-7)


def test_outputs_of_the_written_out_function_all_carry_gradients():
    """`torch.compile` of PyTorch 2.11 refuses a custom function with an output that needs none."""
    *old, loc, tril = problem(3, size=2)
    constants = _fused.OldPolicy.of(*old, _fused.combination(loc))
    outputs = _fused._Decoupled.apply(loc.requires_grad_(), tril.requires_grad_(), constants)
    assert all(x.requires_grad for x in outputs)
