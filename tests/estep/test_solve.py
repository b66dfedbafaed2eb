"""Arguments and settings of the dual solvers: dtypes, shapes, errors, published settings."""

import pytest
import scipy.optimize
import torch

from safe_components.estep import AdamDualSolver, NewtonDualSolver, SLSQPDualSolver

EPSILON = 0.1


def example(m, states=40, particles=16):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q_reward = random(states, 1) * 5 + random(states, 1).exp() * random(states, particles)
    q_cost = 20 + random(states, 1, m) + random(states, 1, m).exp() * random(states, particles, m)
    q_cost = q_cost + 0.5 * q_reward.unsqueeze(-1)
    spread = (q_cost - q_cost.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    return q_reward, q_cost, q_cost.mean((0, 1)) + torch.linspace(-0.15, 0.1, m).double() * spread


def test_float32_is_solved_in_float64():
    q_reward, q_cost, limits = example(2)
    q_reward, q_cost = q_reward.float(), q_cost.float()
    single = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    double = NewtonDualSolver()(q_reward.double(), q_cost.double(), EPSILON, limits)
    assert single.weight.dtype == torch.float32
    assert single.eta.dtype == torch.float64
    assert torch.equal(single.eta, double.eta)
    assert torch.equal(single.weight, double.weight.float())
    assert float(single.residual) <= 1e-8


def test_one_cost_may_come_without_its_axis():
    q_reward, q_cost, limits = example(1)
    with_axis = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    without = NewtonDualSolver()(q_reward, q_cost.squeeze(-1), EPSILON, float(limits))
    assert torch.equal(with_axis.weight, without.weight)
    assert without.lam.shape == (1,)


def test_published_settings_work_on_the_numbers_as_they_come():
    q_reward, q_cost, limits = example(1)
    published = SLSQPDualSolver.published()(q_reward, q_cost, EPSILON, limits)
    exact = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    assert float(published.residual) < 0.3
    assert float(published.residual) > 1e4 * float(exact.residual)
    assert float(published.eta) == pytest.approx(float(exact.eta), rel=0.3)


def test_published_settings_are_the_authors():
    for solver, lam_max in ((SLSQPDualSolver.published(), 1e5), (SLSQPDualSolver.published(3.0), 3.0)):
        assert (solver.max_iterations, solver.ftol) == (10, 1e-3)
        assert solver.finite_differences
        assert not solver.rescale
        assert solver.lam_max == lam_max


@pytest.mark.parametrize("finite_differences", [False, True])
def test_slsqps_evaluations_are_counted(finite_differences, monkeypatch):
    """SciPy counts them as well; its differences are evaluations, too."""
    counts = []

    def counted(*arguments, **options):
        result = scipy.optimize.minimize(*arguments, **options)
        counts.append(result.nfev)
        return result

    monkeypatch.setattr("safe_components.estep.slsqp.minimize", counted)
    q_reward, q_cost, _ = example(0)
    solution = SLSQPDualSolver(finite_differences=finite_differences)(
        q_reward, q_cost, EPSILON, torch.zeros(0)
    )
    assert counts == [int(solution.iterations)]


def test_the_least_numbers_of_iterations_are_accepted():
    for solver in (
        NewtonDualSolver(max_iterations=1),
        NewtonDualSolver(fixed_iterations=1),
        SLSQPDualSolver(max_iterations=1),
        AdamDualSolver(steps=1),
    ):
        q_reward, q_cost, limits = example(1)
        assert not bool(solver(q_reward, q_cost, EPSILON, limits).converged)


def test_one_adam_step_moves_but_does_not_solve():
    q_reward, q_cost, limits = example(1)
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
        (lambda: NewtonDualSolver(max_iterations=0), "max_iterations=0"),
        (lambda: NewtonDualSolver(lam_max=0.0), "lam_max=0.0"),
        (lambda: NewtonDualSolver(tol=0.0), "tol=0.0"),
        (lambda: NewtonDualSolver(feasible_tol=0.0), "feasible_tol=0.0"),
        (lambda: AdamDualSolver(lr=0.0), "lr=0.0"),
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
    with pytest.raises(ValueError, match=r"cost_limits of shape \(1, 2\)"):
        solve(r, c, 0.1, torch.ones(1, 2))
    with pytest.raises(ValueError, match="log_prior"):
        solve(r, c, 0.1, d, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"epsilon=-0\.1"):
        solve(r, c, -0.1, d)
    with pytest.raises(ValueError, match="epsilon=inf"):
        solve(r, c, torch.inf, d)
    with pytest.raises(ValueError, match=r"cost_limits=\[inf, inf\] must be finite"):
        solve(r, c, 0.1, d * torch.inf)
    with pytest.raises(ValueError, match="infeasible='ignore'"):
        solve(r, c, 0.1, d, infeasible="ignore")
    c[1, 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"q_cost\[\.\.\., 1\]"):
        solve(r, c, 0.1, d)
    r[0, 0] = torch.inf
    with pytest.raises(ValueError, match="q_reward"):
        solve(r, c, 0.1, d)
