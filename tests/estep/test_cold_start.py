"""The cold start is the optimum of Gaussian estimates, so few evaluations are left."""

import math

import pytest
import torch

from safe_components.estep import NewtonDualSolver
from safe_components.estep.problem import dual_problem, scale_problem
from safe_components.estep.solve import _cold_start

EPSILON = 0.1


def gaussian(correlation, m=1, states=200, particles=500):
    """Rewards and costs with this correlation; the same draws with both signs, so that all means are 0."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, states, particles // 2, generator=generator, dtype=torch.float64)
    reward, other = torch.cat([draws, -draws], -1)
    cost = correlation * reward + math.sqrt(1 - correlation**2) * other
    return 3.0 * reward, 5.0 * cost.unsqueeze(-1).expand(-1, -1, m)


def start(q_reward, q_cost, limits, log_prior=None):
    return _cold_start(scale_problem(dual_problem(q_reward, q_cost, EPSILON, limits, log_prior)).dual)


@pytest.mark.parametrize(("correlation", "limit"), [(0.5, 0.1), (0.5, -0.2), (0.0, -0.3), (-0.4, -0.3)])
def test_it_is_near_the_optimum_where_the_limit_binds(correlation, limit):
    q_reward, q_cost = gaussian(correlation)
    limits = torch.tensor([5.0 * limit]).double()
    found = NewtonDualSolver()(q_reward, q_cost, EPSILON, limits)
    optimum = [float(found.eta) / 3.0, float(found.lam) * 5.0 / 3.0]
    assert optimum[1] > 0.1
    # Sampling error of 50,000 independent draws, times the slope of the optimum.
    assert start(q_reward, q_cost, limits).tolist() == pytest.approx(optimum, rel=0.05, abs=0.01)


@pytest.mark.parametrize(
    ("m", "limits"),
    [(0, []), (1, [100.0]), (1, [-100.0]), (2, [0.5, 0.5])],
    ids=["without a cost", "slack", "out of reach", "two costs"],
)
def test_elsewhere_it_is_that_of_the_reward_alone(m, limits):
    q_reward, q_cost = gaussian(0.5, m)
    expected = [1 / math.sqrt(2 * EPSILON), *[0.0] * m]
    assert start(q_reward, q_cost, torch.tensor(limits).double()).tolist() == pytest.approx(expected)
    if m == 0:
        found = NewtonDualSolver()(q_reward, q_cost, EPSILON, torch.zeros(0))
        assert float(found.eta) / 3.0 == pytest.approx(expected[0], rel=0.02)


def test_a_uniform_prior_is_none_and_excluded_actions_do_not_count():
    q_reward, q_cost = gaussian(0.5)
    limits = torch.tensor([0.5]).double()
    without = start(q_reward, q_cost, limits)
    uniform = torch.zeros_like(q_reward)
    torch.testing.assert_close(start(q_reward, q_cost, limits, uniform), without)
    more = [torch.cat([q, torch.full_like(q[:, :100], 7.0)], 1) for q in (q_reward, q_cost)]
    excluded = torch.cat([uniform, torch.full_like(uniform[:, :100], -torch.inf)], 1)
    torch.testing.assert_close(start(*more, limits, excluded), without)
