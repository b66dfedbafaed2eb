"""The laws every dual solver keeps, each to its own accuracy."""

import math

import numpy as np
import pytest
import torch

from safe_components.estep import AdamDualSolver, NewtonDualSolver, SLSQPDualSolver

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Solver and the KKT residual asked of it, relative to scale.
SOLVERS = {
    "newton": (NewtonDualSolver(), 1e-8),
    "newton-fixed": (NewtonDualSolver(fixed_iterations=30), 1e-8),
    "slsqp": (SLSQPDualSolver(), 1e-3),
    "slsqp-differences": (SLSQPDualSolver(finite_differences=True), 1e-3),
    "adam": (AdamDualSolver(), 1e-3),
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


def spreads(q, prior):
    """Root of the mean variance within a state, and the mean, under the prior; in NumPy."""
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_kkt_conditions_hold(solver, m, prior, device):
    solve, tol = solver
    for seed in range(3):
        problem = [x if x is None else x.to(device) for x in example(m, seed, prior=prior)]
        q_reward, q_cost, limits, log_prior = problem
        solution = solve(q_reward, q_cost, EPSILON, limits, log_prior)
        assert conditions(solution, *problem) <= tol
        assert float(solution.residual) <= tol
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


def test_closed_form_of_a_linear_gaussian_problem():
    """Prior N(0, s^2 I), Q_r = a.x, Q_c = x_0: q is N(mu, s^2 I) with mu_0 = d, |mu|^2 = 2 epsilon s^2."""
    a, sigma, limit = torch.tensor([2.0, 1.5]).double(), 0.8, 0.1
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


def test_float32_is_solved_in_float64():
    q_reward, q_cost, limits, _ = example(2)
    q_reward, q_cost = q_reward.float(), q_cost.float()
    single = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    double = NewtonDualSolver()(q_reward.double(), q_cost.double(), EPSILON, limits)
    assert single.weight.dtype == torch.float32
    assert single.eta.dtype == torch.float64
    assert torch.equal(single.eta, double.eta)
    assert torch.equal(single.weight, double.weight.float())
    assert float(single.residual) <= 1e-8


def test_one_cost_may_come_without_its_axis():
    q_reward, q_cost, limits, _ = example(1)
    with_axis = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    without = NewtonDualSolver()(q_reward, q_cost.squeeze(-1), EPSILON, float(limits))
    assert torch.equal(with_axis.weight, without.weight)
    assert without.lam.shape == (1,)


def test_a_discrete_set_with_a_forbidden_action():
    """Three actions, the last excluded: the two others' shares follow from the ball alone."""
    q_reward = torch.tensor([[0.0, 1.0, 99.0]])
    log_prior = torch.tensor([[0.5, 0.5, 0.0]]).log()
    solution = NewtonDualSolver()(q_reward, torch.zeros(1, 3, 0), EPSILON, torch.zeros(0), log_prior)
    share = float(solution.weight[0, 1])
    assert solution.weight[0, 2] == 0
    divergence = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    assert divergence == pytest.approx(EPSILON, rel=1e-5)
    assert float(solution.expected_reward) == pytest.approx(share, rel=1e-6)


def test_published_settings_work_on_the_numbers_as_they_come():
    q_reward, q_cost, limits, _ = example(1)
    published = SLSQPDualSolver.published()(q_reward, q_cost, EPSILON, limits)
    exact = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    assert float(published.residual) < 0.3
    assert float(published.residual) > 1e4 * float(exact.residual)
    assert float(published.eta) == pytest.approx(float(exact.eta), rel=0.3)


def test_one_adam_step_moves_but_does_not_solve():
    q_reward, q_cost, limits, _ = example(1)
    solution = AdamDualSolver(steps=1)(q_reward, q_cost, EPSILON, limits)
    assert int(solution.iterations) == 2  # one for the limits as they are, one for their feasibility
    assert not bool(solution.converged)
    assert float(solution.residual) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NewtonDualSolver(eta_min=0.0), "eta_min=0.0"),
        (lambda: NewtonDualSolver(lam_max=-1.0), "lam_max=-1.0"),
        (lambda: NewtonDualSolver(fixed_iterations=0), "fixed_iterations=0"),
        (lambda: NewtonDualSolver(tol=0.0), "tol=0.0"),
        (lambda: SLSQPDualSolver(max_iterations=0), "max_iterations=0"),
        (lambda: AdamDualSolver(steps=0), "steps=0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_arguments_are_named():
    solve = NewtonDualSolver()
    r, c, d = torch.zeros(3, 4), torch.zeros(3, 4, 2), torch.ones(2)
    with pytest.raises(ValueError, match="K >= 2"):
        solve(r[:, :1], c[:, :1], 0.1, d)
    with pytest.raises(ValueError, match=r"got \(4, 3, 2\)"):
        solve(r, c.transpose(0, 1), 0.1, d)
    with pytest.raises(ValueError, match="m = 2"):
        solve(r, c, 0.1, torch.ones(3))
    with pytest.raises(ValueError, match="log_prior"):
        solve(r, c, 0.1, d, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"epsilon=-0\.1"):
        solve(r, c, -0.1, d)
    with pytest.raises(ValueError, match="at least 0"):
        solve(r, c, 0.1, -d)
    with pytest.raises(ValueError, match="infeasible='ignore'"):
        solve(r, c, 0.1, d, infeasible="ignore")
    c[1, 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"q_cost\[\.\.\., 1\]"):
        solve(r, c, 0.1, d)
    r[0, 0] = torch.inf
    with pytest.raises(ValueError, match="q_reward"):
        solve(r, c, 0.1, d)
