"""The dual function against its definition, its derivatives against autograd and differences."""

import math

import pytest
import torch
from devices import DEVICES

from safe_components.estep import dual, dual_problem, dual_terms


def example(m, lead=(), prior=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q_reward, q_cost = random(*lead, 6, 5), random(*lead, 6, 5, m)
    eta, lam = random(*lead).exp(), random(*lead, m).abs()
    log_prior = random(*lead, 6, 5) if prior else None
    return q_reward, q_cost, eta, lam, 0.3, random(*lead, m).abs(), log_prior


def by_definition(q_reward, q_cost, eta, lam, epsilon, limits, log_prior):
    """The formula of the docstring, one state after the other."""
    states, particles = q_reward.shape
    logs = []
    for b in range(states):
        p = torch.full_like(q_reward[b], 1 / particles) if log_prior is None else log_prior[b].softmax(0)
        logs.append((p * ((q_reward[b] - q_cost[b] @ lam) / eta).exp()).sum().log())
    return eta * epsilon + lam @ limits + eta * torch.stack(logs).mean()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_value_by_definition_and_derivatives_by_autograd(m, prior, device):
    q_reward, q_cost, eta, lam, epsilon, limits, log_prior = (
        x.to(device) if isinstance(x, torch.Tensor) else x for x in example(m, prior=prior)
    )
    terms = dual_terms(dual_problem(q_reward, q_cost, epsilon, limits, log_prior), eta, lam)

    def function(x):
        return by_definition(q_reward, q_cost, x[0], x[1:], epsilon, limits, log_prior)

    x = torch.cat([eta.reshape(1), lam])
    torch.testing.assert_close(terms.value, function(x))
    torch.testing.assert_close(terms.gradient, torch.autograd.functional.jacobian(function, x))
    torch.testing.assert_close(terms.hessian, torch.autograd.functional.hessian(function, x))


@pytest.mark.parametrize("m", [0, 1, 3])
def test_derivatives_by_finite_differences(m):
    q_reward, q_cost, eta, lam, epsilon, limits, _ = example(m, seed=1)
    problem = dual_problem(q_reward, q_cost, epsilon, limits)
    terms = dual_terms(problem, eta, lam)
    x, h = torch.cat([eta.reshape(1), lam]), 1e-5
    for i in range(1 + m):
        step = torch.zeros_like(x)
        step[i] = h
        up = dual_terms(problem, (x + step)[0], (x + step)[1:])
        down = dual_terms(problem, (x - step)[0], (x - step)[1:])
        # Central differences err by h^2 in the third derivative (1e-10) and by rounding over h (1e-11).
        torch.testing.assert_close((up.value - down.value) / (2 * h), terms.gradient[i], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(
            (up.gradient - down.gradient) / (2 * h), terms.hessian[i], rtol=1e-7, atol=1e-8
        )


def test_weights_are_a_softmax_and_expectations_theirs():
    q_reward, q_cost, eta, lam, epsilon, limits, log_prior = example(2, prior=True)
    terms = dual_terms(dual_problem(q_reward, q_cost, epsilon, limits, log_prior), eta, lam)
    weight = terms.weight
    torch.testing.assert_close(weight, ((q_reward - q_cost @ lam) / eta + log_prior).softmax(-1))
    torch.testing.assert_close(terms.expectation[0], (weight * q_reward).sum(-1).mean())
    torch.testing.assert_close(terms.expectation[1:], (weight.unsqueeze(-1) * q_cost).sum(-2).mean(0))
    kl = (weight * (weight.log() - log_prior.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(epsilon - terms.gradient[0], kl)


def test_leading_dimensions_are_independent_problems():
    q_reward, q_cost, eta, lam, epsilon, limits, log_prior = example(2, lead=(3, 2), prior=True)
    together = dual_terms(dual_problem(q_reward, q_cost, epsilon, limits, log_prior), eta, lam)
    for i in range(3):
        for j in range(2):
            at = (i, j)
            alone = dual_terms(
                dual_problem(q_reward[at], q_cost[at], epsilon, limits[at], log_prior[at]), eta[at], lam[at]
            )
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[at], b)


def test_excluded_actions_have_no_weight_whatever_their_estimates():
    q_reward, q_cost, eta, lam, epsilon, limits, _ = example(1)
    log_prior = torch.full_like(q_reward, math.log(0.25))
    log_prior[:, 2] = -torch.inf
    q_reward[:, 2], q_cost[:, 2] = torch.nan, torch.inf
    terms = dual_terms(dual_problem(q_reward, q_cost, epsilon, limits, log_prior), eta, lam)
    keep = [0, 1, 3, 4]
    alone = dual_terms(dual_problem(q_reward[:, keep], q_cost[:, keep], epsilon, limits), eta, lam)
    assert terms.weight[:, 2].abs().max() == 0
    torch.testing.assert_close(terms.weight[:, keep], alone.weight)
    torch.testing.assert_close(terms.value, alone.value)
    torch.testing.assert_close(terms.hessian, alone.hessian)


@pytest.mark.parametrize("lead", [(), (2, 3)])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_second_moments_as_a_gpu_sums_them(m, lead, monkeypatch):
    q_reward, q_cost, eta, lam, epsilon, limits, log_prior = example(m, lead=lead, prior=True)
    problem = dual_problem(q_reward, q_cost, epsilon, limits, log_prior)
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(*lead, 1, 6, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(*lead, 1 + m, 6, 5, generator=generator, dtype=torch.float64)
    expected = torch.einsum("...bk,...ibk,...jbk->...ij", weights.squeeze(-3), x, x)
    torch.testing.assert_close(dual._second_moments(weights, x), expected)
    torch.testing.assert_close(dual._summed_products(weights, x), expected)
    hessian = dual_terms(problem, eta, lam).hessian
    monkeypatch.setattr(dual, "_second_moments", dual._summed_products)
    torch.testing.assert_close(dual_terms(problem, eta, lam).hessian, hessian)


def test_weak_duality():
    """Any distribution inside the ball that meets the limits earns no more than any value of the dual."""
    q_reward, q_cost, _, _, _, _, _ = example(1, seed=4)
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(6, 5, generator=generator, dtype=torch.float64).softmax(-1)
    epsilon = (weight * (weight * 5).log()).sum(-1).mean()
    limits = (weight.unsqueeze(-1) * q_cost).sum(-2).mean(0)
    reward = (weight * q_reward).sum(-1).mean()
    problem = dual_problem(q_reward, q_cost, epsilon, limits)
    for _ in range(200):
        eta = torch.rand((), generator=generator, dtype=torch.float64) * 5 + 1e-3
        lam = torch.rand(1, generator=generator, dtype=torch.float64) * 5
        assert dual_terms(problem, eta, lam, hessian=False).value >= reward - 1e-12
