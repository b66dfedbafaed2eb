"""The E-step with multipliers given: against the full dual, against SciPy, and what it reports."""

import numpy as np
import pytest
import torch
from devices import DEVICES
from scipy.optimize import brentq
from tensordict import TensorDict

from safe_components.estep import EStepProjector, GivenMultiplierSolver, NewtonDualSolver, SLSQPDualSolver


def example(m=1, states=30, particles=12, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    q_reward = torch.randn(states, particles, generator=generator, dtype=dtype) * 3 + 10
    q_cost = torch.rand(states, particles, m, generator=generator, dtype=dtype) + 0.2 * q_reward.unsqueeze(-1)
    return q_reward, q_cost


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [1, 2])
def test_the_duals_own_multiplier_gives_the_duals_own_answer(m, device):
    q_reward, q_cost = (q.to(device) for q in example(m))
    limits = q_cost.mean((0, 1)) - 0.1 * q_cost.std()
    full = NewtonDualSolver()(q_reward, q_cost, 0.1, limits)
    assert bool(full.feasible)
    assert bool((full.lam > 0).any())
    given = GivenMultiplierSolver(lambda: full.lam)(q_reward, q_cost, 0.1, limits)
    # Both temperatures solve the same equation to 1e-8; the weights follow them continuously.
    torch.testing.assert_close(given.weight, full.weight, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(given.eta, full.eta, rtol=1e-6, atol=0)
    torch.testing.assert_close(given.expected_reward, full.expected_reward)
    torch.testing.assert_close(given.expected_cost, full.expected_cost)
    assert torch.equal(given.lam, full.lam)


@pytest.mark.parametrize("inner", [NewtonDualSolver(), SLSQPDualSolver()], ids=["newton", "slsqp"])
def test_against_a_scalar_root_search(inner):
    q_reward, q_cost = example(2, seed=1)
    lam = torch.tensor([0.7, 0.2], dtype=torch.float64)
    combined = (q_reward - q_cost @ lam).numpy()

    def weights(eta):
        z = np.exp((combined - combined.max(1, keepdims=True)) / eta)
        return z / z.sum(1, keepdims=True)

    def divergence(eta):
        w = weights(eta)
        return (w * np.log(np.maximum(w, 1e-300) * w.shape[1])).sum(1).mean() - 0.1

    eta = brentq(divergence, 0.05, 100.0, xtol=1e-12)
    solution = GivenMultiplierSolver(lambda: lam, inner)(q_reward, q_cost, 0.1, torch.ones(2))
    tolerance = 1e-6 if isinstance(inner, NewtonDualSolver) else 2e-2  # of SLSQP's own stopping rule
    assert float(solution.eta) == pytest.approx(eta, rel=tolerance)
    np.testing.assert_allclose(solution.weight.numpy(), weights(eta), atol=tolerance)


def test_without_a_price_the_limit_changes_nothing_and_is_reported():
    q_reward, q_cost = example()
    free = NewtonDualSolver()(q_reward, q_cost[..., :0], 0.1, torch.empty(0))
    solver = GivenMultiplierSolver(lambda: torch.zeros(1))
    high, low = (solver(q_reward, q_cost, 0.1, torch.tensor([d])) for d in (100.0, 0.0))
    assert torch.equal(high.weight, free.weight)
    assert torch.equal(low.weight, free.weight)
    assert bool(high.feasible)
    assert not bool(low.feasible)
    expected = (free.weight.unsqueeze(-1) * q_cost).sum(1).mean(0)
    torch.testing.assert_close(low.expected_cost, expected)


@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_limits_count_as_met_up_to_a_share_of_the_spread(shift):
    """The tolerance is the solver's, in spreads: neither the size of costs nor their sign changes it."""
    q_reward, q_cost = example()
    spread = float((q_cost - q_cost.mean(1, keepdim=True)).square().mean().sqrt())
    solver = GivenMultiplierSolver(lambda: torch.ones(1))
    expected = solver(q_reward, q_cost + shift, 0.1, torch.zeros(1)).expected_cost
    for margin, feasible in ((2e-6, True), (0.0, True), (-5e-7, True), (-2e-6, False), (-1e-2, False)):
        solution = solver(q_reward, q_cost + shift, 0.1, expected + margin * spread)
        assert bool(solution.feasible) == feasible, margin


@pytest.mark.parametrize("cost", [0.1, 333.3])
def test_a_limit_that_a_constant_cost_equals_is_met_in_spite_of_rounding(cost):
    limit, above = torch.tensor([cost], dtype=torch.float64), 0
    for seed in range(10):
        q_reward, _ = example(states=1, particles=3, seed=seed)
        q_cost = limit.expand(1, 3, 1)
        solution = GivenMultiplierSolver(lambda: torch.ones(1))(q_reward, q_cost, 0.1, limit)
        assert bool(solution.feasible)
        above += int(solution.expected_cost > limit)
    assert above > 0  # by the last digit


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("in_spreads", [False, True])
def test_each_leading_index_is_a_problem_of_its_own(in_spreads, prior):
    examples = [example(2, states=4, particles=5, seed=seed) for seed in range(6)]
    q_reward, q_cost = (torch.stack(q).reshape(2, 3, *q[0].shape) for q in zip(*examples, strict=True))
    log_prior = torch.linspace(-1, 1, 5).double().expand_as(q_reward) if prior else None
    limits = q_cost.mean((2, 3)) + 0.3 * torch.linspace(-1, 1, 12).double().reshape(2, 3, 2)
    solver = GivenMultiplierSolver(lambda: torch.tensor([0.7, 0.2]), in_spreads=in_spreads)
    together = solver(q_reward, q_cost, 0.1, limits, log_prior)
    assert 0 < together.feasible.sum() < 6
    for at in ((0, 1), (1, 0), (1, 2)):
        alone = solver(
            q_reward[at], q_cost[at], 0.1, limits[at], None if log_prior is None else log_prior[at]
        )
        for field, value in vars(alone).items():
            if field not in ("residual", "iterations"):
                other = vars(together)[field][at]
                torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-9, msg=field)


def test_excluded_actions_may_cost_anything():
    q_reward, q_cost = example()
    log_prior = torch.zeros_like(q_reward)
    log_prior[:, 3] = -torch.inf
    q_cost[:, 3] = torch.nan
    solution = GivenMultiplierSolver(lambda: torch.ones(1))(q_reward, q_cost, 0.1, torch.ones(1), log_prior)
    keep = [k for k in range(q_reward.shape[1]) if k != 3]
    alone = GivenMultiplierSolver(lambda: torch.ones(1))(
        q_reward[:, keep], q_cost[:, keep], 0.1, torch.ones(1)
    )
    torch.testing.assert_close(solution.weight[:, keep], alone.weight)
    torch.testing.assert_close(solution.expected_cost, alone.expected_cost)


def test_inside_the_projector_it_follows_a_multiplier_that_moves():
    q_reward, q_cost = example(dtype=torch.float32)
    lam = torch.zeros(1)
    projector = EStepProjector(0.1, [0.0], GivenMultiplierSolver(lambda: lam))
    costs = []
    for value in (0.0, 1.0, 5.0):
        lam.fill_(value)
        batch = TensorDict(particles={"q_reward": q_reward, "q_cost": q_cost}, batch_size=[len(q_reward)])
        weight = projector(batch)["particles", "weight"]
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.sum(-1), torch.ones(len(q_reward)))
        assert projector.lam.tolist() == [value]
        costs.append(float(projector.solution.expected_cost))
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize(
    ("lam", "said"), [([-0.5], r"\[-0.5\], must be at least 0"), ([0.1, 0.2], "2.* for 1 costs")]
)
def test_a_bad_multiplier_is_named(lam, said):
    q_reward, q_cost = example()
    with pytest.raises(ValueError, match=said):
        GivenMultiplierSolver(lambda: torch.tensor(lam))(q_reward, q_cost, 0.1, torch.ones(1))


@pytest.mark.parametrize(("reward", "cost"), [(1.0, 1.0), (1e3, 1.0), (1.0, 1e-3), (1e4, 1e4)])
def test_in_spreads_units_do_not_matter(reward, cost):
    torch.manual_seed(0)
    q_reward, q_cost = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, 2, dtype=torch.float64)
    limits = torch.tensor([0.1, 0.2], dtype=torch.float64)
    solver = GivenMultiplierSolver(lambda: torch.tensor([0.5, 2.0]), in_spreads=True)
    expected = solver(q_reward, q_cost, 0.1, limits)
    found = solver(reward * q_reward, cost * q_cost, 0.1, cost * limits)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.lam, expected.lam * reward / cost, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(found.eta, expected.eta * reward, rtol=1e-9, atol=0.0)


def test_in_spreads_one_weighs_a_cost_like_the_reward():
    torch.manual_seed(0)
    q_reward, q_cost = 7.0 * torch.randn(50, 40), 0.01 * torch.randn(50, 40, 1)
    solution = GivenMultiplierSolver(lambda: torch.ones(1), in_spreads=True)(q_reward, q_cost, 0.05, 0.0)
    spread = [q.var(1, correction=0).mean().sqrt() for q in (q_reward, q_cost.squeeze(-1))]
    assert solution.lam.item() == pytest.approx((spread[0] / spread[1]).item(), rel=1e-5)
    gains = [
        ((solution.weight - 1 / 40) * q).sum(1).mean() / s
        for q, s in zip((q_reward, q_cost.squeeze(-1)), spread, strict=True)
    ]
    assert gains[0].item() == pytest.approx(-gains[1].item(), rel=0.05)


def test_in_spreads_a_cost_without_spread_has_no_price():
    q_reward, q_cost = torch.randn(5, 8), torch.full((5, 8, 1), 3.0)
    solution = GivenMultiplierSolver(lambda: torch.ones(1), in_spreads=True)(q_reward, q_cost, 0.05, 1.0)
    assert solution.lam.tolist() == [0.0]
    assert solution.weight.isfinite().all()
