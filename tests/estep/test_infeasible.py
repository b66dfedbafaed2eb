"""Limits that no distribution in the KL ball meets, and prices that are clipped."""

import pytest
import torch

from safe_components.estep import NewtonDualSolver


def example(m, seed, states=3, particles=5):
    generator = torch.Generator().manual_seed(seed)
    q_reward = torch.randn(states, particles, generator=generator, dtype=torch.float64)
    q_cost = 5 + torch.randn(states, particles, m, generator=generator, dtype=torch.float64)
    return q_reward, q_cost


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


def test_clipping_maximizes_reward_less_an_l1_penalty():
    q_reward, q_cost = example(1, 0, states=30, particles=16)
    limits = torch.tensor([3.0]).double()
    solve = NewtonDualSolver(lam_max=2.0)
    solution = solve(q_reward, q_cost, 0.05, limits, infeasible="clip")
    assert not bool(solution.feasible)
    assert not bool(solution.recovered)
    assert bool(solution.lam_clipped)
    assert float(solution.lam) == pytest.approx(2.0)
    # Everywhere in the ball the limit is exceeded, so the penalized problem has the reward Q_r - 2 Q_c.
    penalized = q_reward - 2.0 * q_cost.squeeze(-1)
    free = NewtonDualSolver()(penalized, q_cost[..., :0], 0.05, torch.zeros(0))
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


def test_a_warm_start_does_not_price_a_cost_that_no_action_changes():
    q_reward, q_cost = example(2, 0)
    q_cost[..., 1] = 4.0
    cold = NewtonDualSolver()(q_reward, q_cost, 0.1, torch.tensor([5.0, 4.1]))
    init = (cold.eta, torch.tensor([0.0, 7.0]).double())
    warm = NewtonDualSolver()(q_reward, q_cost, 0.1, torch.tensor([5.0, 4.1]), init=init)
    assert float(warm.lam[1]) == 0.0
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-6, atol=1e-9)


class Counting(NewtonDualSolver):
    """Keeps the evaluations of each minimization."""

    def minimize(self, problem, start):
        found = super().minimize(problem, start)
        self.counts.append(int(found.iterations))
        return found


@pytest.mark.parametrize("infeasible", ["recover", "clip"])
@pytest.mark.parametrize(("limit", "calls"), [(9.0, 1), (3.0, 2)])
def test_the_evaluations_that_decide_feasibility_are_counted(limit, calls, infeasible):
    q_reward, q_cost = example(1, 0, states=30, particles=16)
    solve = Counting()
    solve.counts = []
    solution = solve(q_reward, q_cost, 0.05, torch.tensor([limit]), infeasible=infeasible)
    assert len(solve.counts) == calls
    assert int(solution.iterations) == sum(solve.counts)


@pytest.mark.parametrize("max_iterations", [1, 2])
def test_a_doubt_alone_is_no_proof_that_limits_cannot_be_met(max_iterations):
    """A solve that stops too early leaves a doubt; only the recovery dual's value decides."""
    generator = torch.Generator().manual_seed(0)
    q_reward = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    q_cost = q_reward.unsqueeze(-1) + torch.randn(20, 8, 1, generator=generator, dtype=torch.float64)
    solution = NewtonDualSolver(max_iterations=max_iterations)(q_reward, q_cost, 0.1, torch.tensor([-0.4]))
    assert not bool(solution.converged)
    assert bool(solution.feasible)
    assert not bool(solution.recovered)
