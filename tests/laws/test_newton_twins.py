"""``_newton_host.py`` is the fast twin of ``newton.py``: the same steps, the same answer."""

import pytest
import torch

from safe_components.estep import NewtonDualSolver, _newton_host, kkt_residual, newton


def random_points(m, count=300):
    """Points on and off their bounds, with gradients of either sign and Hessians down to singular ones."""
    generator = torch.Generator().manual_seed(m)

    def random(*shape):
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    lower = torch.cat([torch.full((1,), 1e-6), torch.zeros(m)]).double()
    upper = torch.cat([torch.full((1,), torch.inf), torch.full((m,), 2.0)]).double()
    point = random(1 + m).exp().clamp(lower, upper)
    at_lower, at_upper = random(1 + m) > 1.0, random(1 + m) > 1.0
    at_upper[:, 0] = False
    point = torch.where(at_lower, lower, torch.where(at_upper, upper, point))
    rank = torch.randint(0, 2 + m, (count,), generator=generator)
    root = random(1 + m, 1 + m) * (torch.arange(1 + m) < rank[:, None])[:, None]
    hessian = root @ root.mT * (3 * random(1, 1)).exp()
    gradient = random(1 + m) * (3 * random(1)).exp()
    return point, gradient, hessian, lower.expand_as(point), upper.expand_as(point), (random() - 1).exp()


@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_steps_and_residuals_are_the_same(m):
    point, gradient, hessian, lower, upper, radius = random_points(m)
    eye = torch.eye(1 + m, dtype=torch.float64)
    epsilon = torch.full_like(radius, 0.1)
    step, size = newton._newton_step(point, gradient, hessian, lower, upper, radius, eye)
    residual = kkt_residual(gradient, point, lower, upper, epsilon)
    for i in range(len(point)):
        at, slope, low, high = (x[i].tolist() for x in (point, gradient, lower, upper))
        one, length = _newton_host._newton_step(at, slope, hessian[i].tolist(), low, high, float(radius[i]))
        # The same operations in the same order, but for the elimination's sums.
        torch.testing.assert_close(step.new_tensor(one), step[i], rtol=1e-9, atol=1e-12)
        assert length == pytest.approx(float(size[i]), rel=1e-9)
        assert _newton_host._residual(slope, at, low, high, 0.1) == float(residual[i])


def problems():
    """Limits that can be met and that cannot, and bad starts: a name, the arguments, the start."""
    for m in range(4):
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            q_reward = 2 * torch.randn(30, 8, generator=generator, dtype=torch.float64)
            q_cost = 2 + torch.randn(30, 8, m, generator=generator, dtype=torch.float64)
            q_cost = q_cost + 0.3 * q_reward.unsqueeze(-1)
            log_prior = torch.randn(30, 8, generator=generator, dtype=torch.float64) if seed % 2 else None
            for level in (1.9, 1.2, 0.1):
                limits = torch.full((m,), level, dtype=torch.float64)
                yield f"{m} {seed} {level}", (q_reward, q_cost, 0.1, limits, log_prior), None
            for eta, lam in ((0.1, 0.0), (0.1, 10.0), (1e3, 30.0)):
                init = (torch.tensor(eta).double(), torch.full((m,), lam).double())
                yield f"{m} {seed} from {eta} {lam}", (q_reward, q_cost, 0.1, limits + 1.8, log_prior), init


@pytest.mark.parametrize(
    ("settings", "infeasible"),
    [({}, "recover"), ({"lam_max": 0.5}, "clip"), ({"max_iterations": 3}, "recover")],
)
def test_a_single_problem_is_a_batch_of_one(settings, infeasible):
    """All fields agree, and the evaluations: so the trust radius moves alike."""
    solve = NewtonDualSolver(**settings)
    for name, (q_reward, q_cost, epsilon, limits, log_prior), init in problems():
        one = solve(q_reward, q_cost, epsilon, limits, log_prior, infeasible=infeasible, init=init)
        lead = [None if x is None else x.unsqueeze(0) for x in (q_reward, q_cost, limits, log_prior)]
        start = None if init is None else tuple(x.unsqueeze(0) for x in init)
        many = solve(*lead[:2], epsilon, *lead[2:], infeasible=infeasible, init=start)
        for field, value in vars(one).items():
            other = vars(many)[field].squeeze(0)
            if field == "residual":  # differences of numbers near 1
                assert float((value - other).abs()) <= 1e-9 + 1e-6 * float(value), name
            else:
                torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: n + m)


def test_the_radius_recovers_after_a_bad_start():
    counts = []
    for _, arguments, init in problems():
        if init is not None:
            solution = NewtonDualSolver()(*arguments, init=init)
            assert bool(solution.converged)
            counts.append(int(solution.iterations))
    # 12.1 evaluations; 12.9 with a radius that stays small after an accepted step, 29 with one that grows
    # past the full box.
    assert sum(counts) / len(counts) <= 12.5
