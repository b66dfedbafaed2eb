"""Problems at the edge of the numbers: certain priors, tiny prices, costs that are alike, bad starts."""

import math

import pytest
import torch

from safe_components.estep import NewtonDualSolver, kkt_residual

BOTH = pytest.mark.parametrize("lead", [(), (1,)], ids=["floats", "tensors"])


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(weight, log_prior=None):
    weight = weight.double()
    log_prior = (torch.zeros_like(weight) if log_prior is None else log_prior.double()).log_softmax(-1)
    ratio = weight.clamp_min(1e-300).log() - log_prior
    return float(torch.where(weight > 0, weight * ratio, 0.0).sum(-1).mean())


@BOTH
def test_a_violated_limit_is_not_converged_below_a_tiny_cap(lead):
    """A cost 1e-15 times as large as the reward: its cap leaves room for a price of 1e-15 only."""
    q_reward, q_cost = normal(0, *lead, 3, 4), 1e-15 * normal(1, *lead, 3, 4, 1)
    limit = (q_cost.mean() - 0.3 * q_cost.std()).reshape(1)
    solution = NewtonDualSolver(lam_max=1.0)(q_reward, q_cost, 0.1, limit, infeasible="clip")
    assert bool(solution.converged)
    assert bool(solution.lam_clipped.all())
    assert float(solution.lam) == pytest.approx(1.0)
    assert float(solution.expected_cost - limit) > 0.0


def test_the_residual_near_a_cap_is_relative_to_the_cap():
    """With the whole range of a price left, a violation counts in full, however small the range is."""
    slack = torch.tensor([0.0, -0.1], dtype=torch.float64)
    lower, epsilon = torch.zeros(2, dtype=torch.float64), torch.tensor(0.2)
    for cap in (1e-15, 0.5, 1.0, 1e6):
        upper = torch.tensor([math.inf, cap], dtype=torch.float64)
        at = [torch.tensor([1.0, share * min(cap, 1.0)], dtype=torch.float64) for share in (0.0, 0.75, 1.0)]
        residuals = [float(kkt_residual(slack, point, lower, upper, epsilon)) for point in at]
        expected = [0.1, 0.025, 0.0] if cap <= 1.0 else [0.1, 0.1, 0.1]
        assert residuals == pytest.approx(expected, abs=1e-12)
    upper = torch.tensor([math.inf, 0.0], dtype=torch.float64)
    assert float(kkt_residual(slack * 0, lower, lower, upper, epsilon)) == 0.0
    # The slope at the cap itself: a tenth of the unit below it counts a tenth.
    upper = torch.tensor([math.inf, 5.0], dtype=torch.float64)
    point = torch.tensor([1.0, 4.9], dtype=torch.float64)
    assert float(kkt_residual(slack, point, lower, upper, epsilon)) == pytest.approx(0.01)


@BOTH
@pytest.mark.parametrize("init", [None, (-1.0, 2.0), (0.0, 0.0), (1e-300, 1e30), (1e30, -7.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_prior_that_is_certain_leaves_what_the_ball_allows(init, dtype, lead):
    """Two actions, the better one 100 nats away: w log(w / p) + (1 - w) log((1 - w) / (1 - p)) = ε."""
    q_reward = torch.tensor([0.0, 1.0], dtype=dtype).expand(*lead, 1, 2)
    log_prior = torch.tensor([0.0, -100.0], dtype=dtype).expand(*lead, 1, 2)
    start = None
    if init is not None:
        start = (torch.full(lead, init[0]).double(), torch.full((*lead, 0), init[1]).double())
    solution = NewtonDualSolver()(
        q_reward, torch.zeros(*lead, 1, 2, 0), 2.0, torch.zeros(0), log_prior, init=start
    )
    low, high = 0.0, 0.5
    for _ in range(100):
        w = 0.5 * (low + high)
        low, high = (w, high) if w * (math.log(w) + 100) + (1 - w) * math.log1p(-w) < 2.0 else (low, w)
    assert bool(solution.converged)
    assert float(solution.weight[..., 1]) == pytest.approx(w, rel=1e-5)
    assert float(solution.kl) == pytest.approx(2.0, rel=1e-6)
    assert float(solution.expected_reward) == pytest.approx(w, rel=1e-6)


@BOTH
@pytest.mark.parametrize("gap", [0.0, 0.3])
@pytest.mark.parametrize("epsilon", [0.01, 0.5])
def test_costs_that_are_alike_stay_inside_the_ball_if_clipped(epsilon, gap, lead):
    """Their multipliers can be exchanged for one another, and both must rise to the cap."""
    for seed in range(12):
        q_reward, q_cost = normal(seed, *lead, 4, 4), normal(100 + seed, *lead, 4, 4, 1)
        limits = torch.full((2,), float(q_cost.mean() - 3 * q_cost.std())).double()
        limits[1] += gap
        alike = q_cost.expand(*lead, 4, 4, 2)
        solution = NewtonDualSolver()(q_reward, alike, epsilon, limits, infeasible="clip")
        assert bool(solution.converged)
        assert divergence(solution.weight) <= epsilon * (1 + 1e-6)
        assert bool(solution.lam_clipped.all())
        one = NewtonDualSolver()(q_reward, q_cost, epsilon, limits[:1])  # recovers
        torch.testing.assert_close(solution.expected_cost[..., :1], one.expected_cost, rtol=1e-5, atol=1e-5)


@BOTH
def test_a_cost_that_nothing_moves_has_no_price_warm_or_cold(lead):
    q_reward, q_cost = (
        normal(0, *lead, 5, 4),
        torch.stack(
            [
                normal(1, *lead, 5, 4),
                torch.full((*lead, 5, 4), 3.0).double() + 1e-15 * normal(2, *lead, 5, 4),
            ],
            -1,
        ),
    )
    limits = torch.tensor([-0.1, 4.0], dtype=torch.float64)
    cold = NewtonDualSolver()(q_reward, q_cost, 0.1, limits)
    start = cold.eta, torch.full((*lead, 2), 7.0).double()
    warm = NewtonDualSolver()(q_reward, q_cost, 0.1, limits, init=start)
    assert cold.lam[..., 1].tolist() == warm.lam[..., 1].tolist() == torch.zeros(lead).tolist()
    assert bool(warm.converged)
    torch.testing.assert_close(warm.lam, cold.lam, rtol=1e-6, atol=1e-9)


@BOTH
@pytest.mark.parametrize("prior", [False, True])
def test_divergence_and_expectations_are_those_of_the_returned_weights(prior, lead):
    """With prices of 1e6 spreads, logits have twelve digits before the point; no digit of these is lost."""
    for seed in range(20):
        q_reward, q_cost = normal(seed, *lead, 3, 8), 5.0 + normal(50 + seed, *lead, 3, 8, 1)
        log_prior = normal(80 + seed, *lead, 3, 8) if prior else None
        solution = NewtonDualSolver()(q_reward, q_cost, 2.0, torch.zeros(1), log_prior, infeasible="clip")
        weight = solution.weight
        assert float(solution.kl) == pytest.approx(divergence(weight, log_prior), rel=1e-9)
        reward, cost = (weight * q_reward).sum(-1).mean(), (weight * q_cost[..., 0]).sum(-1).mean()
        assert float(solution.expected_reward) == pytest.approx(float(reward), rel=1e-9, abs=1e-12)
        assert float(solution.expected_cost) == pytest.approx(float(cost), rel=1e-12)


def test_too_few_evaluations_are_flagged():
    """The mode without synchronization has as many as it was given, and says if they do not suffice."""
    q_reward, q_cost = normal(5, 3, 4), normal(105, 3, 4, 1).expand(3, 4, 2)
    limits = torch.full((2,), float(q_cost.mean() - 3 * q_cost.std())).double()
    few, enough = (
        NewtonDualSolver(fixed_iterations=n)(q_reward, q_cost, 0.1, limits, infeasible="clip")
        for n in (5, 60)
    )
    assert not bool(few.converged)
    assert bool(enough.converged)
    assert divergence(enough.weight) <= 0.1 * (1 + 1e-6)
