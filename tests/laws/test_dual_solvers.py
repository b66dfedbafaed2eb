"""The laws that every dual solver keeps, each to its own accuracy. A new solver joins with one line."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from devices import DEVICES
from scipy.optimize import minimize

from safe_components.estep import AdamDualSolver, DualSolver, NewtonDualSolver, SLSQPDualSolver


class Case(NamedTuple):
    solve: DualSolver
    residual: float
    """KKT residual, relative to scale, that its answers stay below."""
    margin: float
    """Distance of a limit from what the ball allows, in spreads, at which feasibility is decided."""


SOLVERS = {
    "newton": Case(NewtonDualSolver(), 1e-8, 1e-4),
    "newton-fixed": Case(NewtonDualSolver(fixed_iterations=30), 1e-8, 1e-4),
    "slsqp": Case(SLSQPDualSolver(), 1e-3, 1e-4),
    "slsqp-differences": Case(SLSQPDualSolver(finite_differences=True), 1e-3, 1e-4),
    "adam": Case(AdamDualSolver(), 1e-3, 1e-2),  # its 500 steps leave a residual of up to 1e-3
}
EPSILON = 0.1


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]


def example(m, seed=0, states=40, particles=16, prior=False):
    """Estimates whose spread and level differ from state to state; limits that bind or nearly do."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q_reward = random(states, 1) * 5 + random(states, 1).exp() * random(states, particles)
    q_cost = 20 + random(states, 1, m) + random(states, 1, m).exp() * random(states, particles, m)
    q_cost = q_cost + 0.5 * q_reward.unsqueeze(-1)
    spread = (q_cost - q_cost.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    limits = q_cost.mean((0, 1)) + torch.linspace(-0.15, 0.1, m).double() * spread
    log_prior = random(states, particles).log_softmax(-1) if prior else None
    return q_reward, q_cost, limits, log_prior


def out_of_reach(m, seed, states=3, particles=5):
    """Estimates alone, for limits below what a small ball allows."""
    generator = torch.Generator().manual_seed(seed)
    q_reward = torch.randn(states, particles, generator=generator, dtype=torch.float64)
    q_cost = 5 + torch.randn(states, particles, m, generator=generator, dtype=torch.float64)
    return q_reward, q_cost


def spreads(q, prior):
    """Root of the mean variance within a state, under the prior; in NumPy."""
    mean = (prior * q).sum(1, keepdims=True)
    return math.sqrt((prior * (q - mean) ** 2).sum(1).mean())


def conditions(solution, q_reward, q_cost, limits, log_prior=None, epsilon=EPSILON):
    """KKT residual from the answer alone, by the formulas of the problem's statement."""
    w = solution.weight.double().cpu().numpy()
    r, c, d = (x.double().cpu().numpy() for x in (q_reward, q_cost, limits))
    p = np.full_like(w, 1 / w.shape[1]) if log_prior is None else log_prior.softmax(-1).cpu().numpy()
    kl = np.where(w > 0, w * np.log(np.where(w > 0, w, 1) / p), 0).sum(1).mean()
    s_r = spreads(r, p)
    eta, lam = float(solution.eta), solution.lam.cpu().numpy()
    logits = (r - c @ lam) / eta + np.log(p)
    stationary = np.exp(logits - logits.max(1, keepdims=True))
    stationary /= stationary.sum(1, keepdims=True)
    residuals = [
        abs(w - stationary).max(),
        max(kl - epsilon, 0) / epsilon,
        eta * max(epsilon - kl, 0) / s_r,
    ]
    for i in range(c.shape[-1]):
        expected = (w * c[..., i]).sum(1).mean()
        residuals += [
            max(expected - d[i], 0) / spreads(c[..., i], p),
            lam[i] * max(d[i] - expected, 0) / s_r,
        ]
    return max(residuals)


def violation(weight, q_cost, limits):
    """Sum of violations, each in spreads of its cost."""
    expected = (weight.unsqueeze(-1) * q_cost).sum(-2).mean(0)
    spread = (q_cost - q_cost.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    return float(((expected - limits).clamp_min(0) / spread).sum())


def divergence(weight):
    return float(torch.xlogy(weight, weight * weight.shape[1]).sum(1).mean())


def least_violation(q_cost, limits, epsilon):
    """The same minimum over ``q`` itself, by SciPy: weights, and one slack per cost."""
    c, d = q_cost.numpy(), limits.numpy()
    states, particles, m = c.shape
    spread = np.sqrt(((c - c.mean(1, keepdims=True)) ** 2).mean((0, 1)))

    def weights(x):
        return x[m:].reshape(states, particles)

    def ball(x):
        w = np.maximum(weights(x), 1e-12)
        return epsilon - (w * np.log(w * particles)).sum(1).mean()

    def slack(x):
        return x[:m] - ((weights(x)[..., None] * c).sum(1).mean(0) - d) / spread

    start = np.concatenate([np.full(m, 10.0), np.full(states * particles, 1 / particles)])
    result = minimize(
        lambda x: x[:m].sum(),
        start,
        jac=lambda x: np.concatenate([np.ones(m), np.zeros(states * particles)]),
        method="SLSQP",
        bounds=[(0, None)] * m + [(1e-9, 1)] * (states * particles),
        constraints=[
            {"type": "eq", "fun": lambda x: weights(x).sum(1) - 1},
            {"type": "ineq", "fun": ball},
            {"type": "ineq", "fun": slack},
        ],
        options={"maxiter": 1000, "ftol": 1e-10},
    )
    assert result.success, result.message
    return result.fun


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_kkt_conditions_hold(solver, m, prior, device):
    for seed in range(3):
        problem = [x if x is None else x.to(device) for x in example(m, seed, prior=prior)]
        q_reward, q_cost, limits, log_prior = problem
        solution = solver.solve(q_reward, q_cost, EPSILON, limits, log_prior)
        assert conditions(solution, *problem) <= solver.residual
        assert float(solution.residual) <= solver.residual
        assert bool(solution.converged)
        assert bool(solution.feasible)
        assert not bool(solution.recovered)
        assert not bool(solution.eta_at_min)
        assert bool((solution.lam >= 0).all())
        torch.testing.assert_close(solution.weight.sum(-1), torch.ones_like(q_reward[:, 0]))
        torch.testing.assert_close(
            solution.expected_cost, (solution.weight.unsqueeze(-1) * q_cost).sum(1).mean(0)
        )
        torch.testing.assert_close(solution.expected_reward, (solution.weight * q_reward).sum(1).mean())


@pytest.mark.parametrize("infeasible", ["recover", "clip"])
@pytest.mark.parametrize("prior", [False, True])
def test_each_leading_index_is_a_problem_of_its_own(solver, prior, infeasible):
    """All sizes differ, so that no axis can be taken for another; limits and balls differ, too."""
    examples = [example(2, seed, states=4, particles=5, prior=prior) for seed in range(6)]
    q_reward, q_cost, limits, log_prior = (
        None if x[0] is None else torch.stack(x).reshape(2, 3, *x[0].shape)
        for x in zip(*examples, strict=True)
    )
    limits[0, 1] -= 50.0  # out of reach
    epsilon = torch.linspace(0.05, 0.3, 6).double().reshape(2, 3)
    together = solver.solve(q_reward, q_cost, epsilon, limits, log_prior, infeasible=infeasible)
    assert 0 < together.feasible.sum() < 6
    reward, cost = (
        (together.weight.unsqueeze(-1) * q).sum(-2).mean(-2) for q in (q_reward[..., None], q_cost)
    )
    torch.testing.assert_close(together.expected_reward, reward.squeeze(-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.expected_cost, cost, rtol=1e-9, atol=1e-9)
    for at in ((0, 1), (1, 0), (1, 2)):
        own = None if log_prior is None else log_prior[at]
        alone = solver.solve(q_reward[at], q_cost[at], epsilon[at], limits[at], own, infeasible=infeasible)
        for field, value in vars(alone).items():
            if field not in ("residual", "iterations"):
                other = vars(together)[field][at]
                torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-6, msg=field)


@pytest.mark.parametrize("make", [NewtonDualSolver, SLSQPDualSolver, AdamDualSolver])
def test_settings_reach_the_driver(make):
    settings = {"tol": 0.5, "eta_min": 0.25, "lam_max": 3.0, "feasible_tol": 0.125}
    solver = make(**settings)
    assert {name: getattr(solver, name) for name in settings} == settings


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("reachable", [True, False])
def test_a_constant_added_to_costs_and_limits_changes_nothing(solver, m, reachable):
    """A shift by -30 makes every cost and every limit negative, as those of an advantage may be."""
    q_reward, q_cost, limits, _ = example(m)
    limits = limits if reachable else limits - 0.9 * q_cost.std()
    base = solver.solve(q_reward, q_cost, EPSILON, limits)
    moved = solver.solve(q_reward, q_cost - 30, EPSILON, limits - 30)
    assert bool((limits - 30 < 0).all())
    assert bool(base.feasible) == bool(moved.feasible) == reachable
    assert bool(base.recovered) == bool(moved.recovered) == (not reachable)
    # Shifted numbers round differently; a solver follows that up to what its own residual allows.
    tolerance = {"rtol": 10 * solver.residual, "atol": solver.residual}
    torch.testing.assert_close(moved.weight, base.weight, **tolerance)
    torch.testing.assert_close(moved.expected_cost + 30, base.expected_cost, **tolerance)
    torch.testing.assert_close(moved.kl, base.kl, **tolerance)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_recovery_is_the_least_violation_that_the_ball_allows(solver, m, epsilon):
    generator = torch.Generator().manual_seed(m)
    for seed in range(4):
        q_reward, q_cost = out_of_reach(m, seed)
        limits = 3.0 + torch.rand(m, generator=generator, dtype=torch.float64)
        best = least_violation(q_cost, limits, epsilon)
        assert best > 0.1
        solution = solver.solve(q_reward, q_cost, epsilon, limits)
        assert not bool(solution.feasible)
        assert bool(solution.recovered)
        assert not bool(solution.lam_clipped.any())  # the bounds of a recovery are not those of the prices
        assert divergence(solution.weight) <= epsilon * (1 + 1e-3)
        assert violation(solution.weight, q_cost, limits) <= 1.01 * best
        assert float(solution.residual) <= 1e-3
        torch.testing.assert_close(solution.expected_reward, (solution.weight * q_reward).sum(1).mean())


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("name", "margin"),
    [(name, x) for name, case in SOLVERS.items() for x in (1e-2, 1e-3, 1e-4) if x >= case.margin],
)
def test_feasibility_is_decided_to_a_ten_thousandth(name, margin, sign):
    case, margin = SOLVERS[name], sign * margin
    q_reward, q_cost = out_of_reach(1, 0, states=30, particles=16)
    spread = (q_cost - q_cost.mean(1, keepdim=True)).square().mean().sqrt()
    least = NewtonDualSolver()(q_reward, q_cost, 0.05, torch.zeros(1)).expected_cost
    limits = least + margin * spread
    solution = case.solve(q_reward, q_cost, 0.05, limits)
    assert bool(solution.feasible) == (margin > 0)
    # The least violation here is `-margin`, and nothing worse may come back on either side.
    assert violation(solution.weight, q_cost, limits) <= max(-margin, 0) + min(case.margin, 1e-3)
    assert divergence(solution.weight) <= 0.05 * (1 + 1e-3)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_no_feasible_distribution_does_better(m):
    q_reward, q_cost, limits, _ = example(m)
    solution = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    generator = torch.Generator().manual_seed(1)
    size = 0.0
    feasible = 0
    for _ in range(3000):
        noise = torch.randn(q_reward.shape, generator=generator, dtype=torch.float64)
        tilt = torch.rand(2 + m, generator=generator, dtype=torch.float64)
        far = torch.softmax(q_reward * tilt[0] - q_cost @ tilt[2:] + 0.3 * noise, -1)
        size = 10.0 ** (-4 * float(tilt[1]))
        w = (1 - size) * solution.weight + size * far
        kl = (w * (w * w.shape[1]).log()).sum(1).mean()
        cost = (w.unsqueeze(-1) * q_cost).sum(1).mean(0)
        if kl <= EPSILON and bool((cost <= limits).all()):
            feasible += 1
            assert (w * q_reward).sum(1).mean() <= solution.expected_reward + 1e-8
    assert feasible > 50


@pytest.mark.parametrize("limit", [0.1, -0.2])
def test_closed_form_of_a_linear_gaussian_problem(limit):
    """Prior N(0, σ²I), Q_r = a·x, Q_c = x₀: q is N(μ, σ²I) with μ₀ = d, |μ|² = 2εσ²."""
    a, sigma = torch.tensor([2.0, 1.5]).double(), 0.8
    eta = sigma**2 * 1.5 / math.sqrt(2 * EPSILON * sigma**2 - limit**2)
    lam = 2.0 - eta * limit / sigma**2
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for particles in (500, 8000):
        x = sigma * torch.randn(200, 1, particles, 2, generator=generator, dtype=torch.float64)
        solution = NewtonDualSolver()(x @ a, x[..., :1], EPSILON, torch.tensor([limit]))
        assert bool(solution.converged.all())
        mean = (solution.weight.unsqueeze(-1) * x).sum(-2).squeeze(1)
        torch.testing.assert_close(mean[:, 0], torch.full_like(mean[:, 0], limit))
        relative = torch.stack([solution.eta / eta - 1, solution.lam[:, 0] / lam - 1])
        errors[particles] = relative.square().mean(1).sqrt()
        # The mean of the 200 problems has a standard error of 1/sqrt(200) of one problem's spread, and
        # a bias of order 1/K beside it.
        assert (relative.mean(1).abs() <= 4 * errors[particles] / math.sqrt(200) + 20 / particles).all()
        assert (errors[particles] <= 4 / math.sqrt(particles)).all()
    # 16 times the particles: a quarter of the error; a ratio of two RMS over 200 has a spread of 7 %.
    ratio = errors[500] / errors[8000]
    assert ((ratio > 3.0) & (ratio < 5.3)).all()


@pytest.mark.parametrize("unit_reward", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("unit_cost", [1e-3, 1e4])
def test_units_and_offsets_do_not_matter(unit_reward, unit_cost):
    q_reward, q_cost, limits, _ = example(2)
    base = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    shift = torch.randn(40, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    solution = NewtonDualSolver()(
        unit_reward * (q_reward + 10 * shift), unit_cost * q_cost, EPSILON, unit_cost * limits
    )
    torch.testing.assert_close(solution.weight, base.weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(solution.eta, unit_reward * base.eta, rtol=1e-6, atol=0)
    torch.testing.assert_close(solution.lam, unit_reward / unit_cost * base.lam, rtol=1e-6, atol=1e-12)


def test_a_discrete_set_with_a_forbidden_action():
    """Three actions, the last excluded: the two others' shares follow from the ball alone."""
    q_reward = torch.tensor([[0.0, 1.0, 99.0]])
    log_prior = torch.tensor([[0.5, 0.5, 0.0]]).log()
    solution = NewtonDualSolver()(q_reward, torch.zeros(1, 3, 0), EPSILON, torch.zeros(0), log_prior)
    share = float(solution.weight[0, 1])
    assert solution.weight[0, 2] == 0
    kl = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    assert kl == pytest.approx(EPSILON, rel=1e-5)
    assert float(solution.expected_reward) == pytest.approx(share, rel=1e-6)
