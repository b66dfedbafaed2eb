"""Limits that no distribution in the KL ball meets: recovered, flagged, told from those that can be met."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from safe_components.estep import AdamDualSolver, NewtonDualSolver, SLSQPDualSolver

SOLVERS = {
    "newton": NewtonDualSolver(),
    "newton-fixed": NewtonDualSolver(fixed_iterations=40),
    "slsqp": SLSQPDualSolver(),
    "adam": AdamDualSolver(),
}


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]


def example(m, seed, states=3, particles=5):
    generator = torch.Generator().manual_seed(seed)
    q_reward = torch.randn(states, particles, generator=generator, dtype=torch.float64)
    q_cost = 5 + torch.randn(states, particles, m, generator=generator, dtype=torch.float64)
    return q_reward, q_cost


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


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_recovery_is_the_least_violation_that_the_ball_allows(solver, m, epsilon):
    generator = torch.Generator().manual_seed(m)
    for seed in range(4):
        q_reward, q_cost = example(m, seed)
        limits = 3.0 + torch.rand(m, generator=generator, dtype=torch.float64)
        best = least_violation(q_cost, limits, epsilon)
        assert best > 0.1
        solution = solver(q_reward, q_cost, epsilon, limits)
        assert not bool(solution.feasible)
        assert bool(solution.recovered)
        assert divergence(solution.weight) <= epsilon * (1 + 1e-3)
        assert violation(solution.weight, q_cost, limits) <= 1.01 * best
        assert float(solution.residual) <= 1e-3


def test_one_limit_can_be_met_and_the_other_cannot():
    """The recovered distribution keeps to the first limit while it comes as close as it can to the second."""
    q_reward, q_cost = example(2, 0, states=30, particles=16)
    limits = torch.tensor([4.95, 3.5]).double()
    solution = NewtonDualSolver()(q_reward, q_cost, 0.05, limits)
    assert not bool(solution.feasible)
    assert float(solution.expected_cost[0]) <= 4.95 + 1e-6
    spread = (q_cost - q_cost.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    # The violated limit's price is at its bound, the price of the one that binds below it.
    assert float(solution.lam[1]) == pytest.approx(1 / float(spread[1]))
    assert 0 < float(solution.lam[0]) < 1 / float(spread[0])
    assert float(solution.kl) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("name", "margin"),
    # 500 Adam steps leave a residual of up to 1e-3, so they can tell less.
    [(n, x) for n in SOLVERS for x in (1e-2, 1e-3, 1e-4) if n != "adam" or x == 1e-2],
)
def test_feasibility_is_decided_to_a_ten_thousandth(name, margin, sign):
    solver, margin = SOLVERS[name], sign * margin
    q_reward, q_cost = example(1, 0, states=30, particles=16)
    spread = (q_cost - q_cost.mean(1, keepdim=True)).square().mean().sqrt()
    least = NewtonDualSolver()(q_reward, q_cost, 0.05, torch.zeros(1)).expected_cost
    limits = least + margin * spread
    solution = solver(q_reward, q_cost, 0.05, limits)
    assert bool(solution.feasible) == (margin > 0)
    # The least violation here is `-margin`, and nothing worse may come back on either side.
    tol = 1e-3 if isinstance(solver, AdamDualSolver) else 1e-4
    assert violation(solution.weight, q_cost, limits) <= max(-margin, 0) + tol
    assert divergence(solution.weight) <= 0.05 * (1 + 1e-3)


def test_clipping_maximises_reward_less_an_l1_penalty():
    q_reward, q_cost = example(1, 0, states=30, particles=16)
    limits = torch.tensor([3.0]).double()
    solve = NewtonDualSolver(lam_max=2.0)
    solution = solve(q_reward, q_cost, 0.05, limits, infeasible="clip")
    assert not bool(solution.feasible)
    assert not bool(solution.recovered)
    assert bool(solution.lam_clipped)
    assert float(solution.lam) == pytest.approx(2.0)
    # Everywhere in the ball the limit is exceeded, so the penalised problem has the reward Q_r - 2 Q_c.
    penalised = q_reward - 2.0 * q_cost.squeeze(-1)
    free = NewtonDualSolver()(penalised, q_cost[..., :0], 0.05, torch.zeros(0))
    torch.testing.assert_close(solution.weight, free.weight, rtol=1e-6, atol=1e-9)


def test_clipping_is_flagged_where_the_limit_could_be_met():
    q_reward, q_cost = example(1, 0, states=30, particles=16)
    q_reward = q_reward + q_cost.squeeze(-1) * 3
    limits = q_cost.mean((0, 1)) - 0.1
    free = NewtonDualSolver()(q_reward, q_cost, 0.05, limits)
    assert bool(free.feasible)
    assert not bool(free.lam_clipped)
    clipped = NewtonDualSolver(lam_max=0.5 * float(free.lam))(q_reward, q_cost, 0.05, limits)
    assert bool(clipped.feasible)
    assert not bool(clipped.recovered)
    assert bool(clipped.lam_clipped)
    assert float(clipped.expected_cost) > float(limits)


def test_only_the_infeasible_problems_of_a_batch_are_recovered():
    q_reward, q_cost = example(1, 0, states=30, particles=16)
    limits = torch.tensor([[3.0], [5.0], [3.5], [9.0]])
    batch = (q_reward.expand(4, -1, -1), q_cost.expand(4, -1, -1, -1))
    together = NewtonDualSolver()(*batch, 0.05, limits)
    assert together.feasible.tolist() == [False, True, False, True]
    assert together.recovered.tolist() == [True, False, True, False]
    for i in range(4):
        alone = NewtonDualSolver()(q_reward, q_cost, 0.05, limits[i])
        torch.testing.assert_close(together.weight[i], alone.weight, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(together.lam[i], alone.lam, rtol=1e-7, atol=1e-10)


def test_a_cost_that_no_action_changes():
    q_reward, q_cost = example(2, 0)
    q_cost[..., 1] = 4.0
    free = NewtonDualSolver()(q_reward, q_cost[..., :1], 0.1, torch.tensor([5.0]))
    for limit, feasible in ((3.9, False), (4.0, True), (4.1, True)):
        solution = NewtonDualSolver()(q_reward, q_cost, 0.1, torch.tensor([5.0, limit]))
        assert bool(solution.feasible) == feasible
        assert not bool(solution.recovered)
        assert float(solution.lam[1]) == 0
        assert float(solution.expected_cost[1]) == pytest.approx(4.0)
        torch.testing.assert_close(solution.weight, free.weight)
