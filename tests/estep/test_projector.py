"""The E-step as a TensorDict module: keys, state, warm starts, solvers it accepts, errors."""

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict

from safe_components.estep import (
    AdamDualSolver,
    EStepProjector,
    NewtonDualSolver,
    SLSQPDualSolver,
)


def batch(m=1, seed=0, dtype=torch.float32, device="cpu", **extra):
    generator = torch.Generator().manual_seed(seed)
    q_reward = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    q_cost = 2 + torch.randn(20, 8, m, generator=generator, dtype=torch.float64)
    particles = {"q_reward": q_reward.to(dtype), "q_cost": q_cost.to(dtype), **extra}
    return TensorDict(particles=particles, batch_size=[20]).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_writes_weights_and_keeps_the_solution(m, dtype, device):
    data = batch(m, dtype=dtype, device=device)
    projector = EStepProjector(0.1, [2.1] * m).to(device)
    with pytest.raises(RuntimeError, match="no solution yet"):
        _ = projector.solution
    result = projector(data)
    assert result is data
    weight = data["particles", "weight"]
    assert weight.dtype == dtype
    assert weight.shape == (20, 8)
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(weight[:, 0]))
    solution = projector.solution
    assert solution.eta.shape == ()
    assert solution.lam.shape == solution.expected_cost.shape == (m,)
    assert float(solution.kl) <= 0.1 + 1e-9
    assert float(solution.residual) <= 1e-8
    assert bool(solution.feasible)
    direct = NewtonDualSolver()(
        data["particles", "q_reward"], data["particles", "q_cost"], 0.1, torch.full((m,), 2.1)
    )
    torch.testing.assert_close(weight, direct.weight)


def test_keys_are_declared_and_can_be_renamed():
    projector = EStepProjector(0.1, 2.1)
    assert projector.in_keys == [("particles", "q_reward"), ("particles", "q_cost")]
    assert projector.out_keys == [("particles", "weight")]
    renamed = EStepProjector(0.1, 2.1, q_reward_key="r", q_cost_key="c", weight_key="w", log_prior_key="p")
    data = batch()
    flat = TensorDict(r=data["particles", "q_reward"], c=data["particles", "q_cost"], batch_size=[20])
    torch.testing.assert_close(renamed(flat)["w"], projector(data)["particles", "weight"])


def test_log_prior_is_read_where_present():
    log_prior = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    with_prior = EStepProjector(0.1, 2.1)(batch(log_prior=log_prior))["particles", "weight"]
    without = EStepProjector(0.1, 2.1)(batch())["particles", "weight"]
    assert (with_prior - without).abs().max() > 0.01
    divergence = (with_prior * (with_prior.log() - log_prior)).sum(-1).mean()
    assert float(divergence) == pytest.approx(0.1, rel=1e-4)


def test_no_gradient_flows_through():
    data = batch()
    data["particles", "q_reward"].requires_grad_()
    assert not EStepProjector(0.1, 2.1)(data)["particles", "weight"].requires_grad


@pytest.mark.parametrize("solver", [None, SLSQPDualSolver(), AdamDualSolver()])
def test_any_solver(solver):
    exact = EStepProjector(0.1, 1.9)(batch())["particles", "weight"]
    weight = EStepProjector(0.1, 1.9, solver=solver)(batch())["particles", "weight"]
    torch.testing.assert_close(weight, exact, rtol=0.01, atol=1e-3)


def only_documented(q_reward, q_cost, epsilon, cost_limits, log_prior=None):
    return NewtonDualSolver()(q_reward, q_cost, epsilon, cost_limits, log_prior)


class DeclaresInit(torch.nn.Module):
    def forward(self, q_reward, q_cost, epsilon, cost_limits, log_prior=None, *, init=None):
        self.last = init
        return NewtonDualSolver()(q_reward, q_cost, epsilon, cost_limits, log_prior, init=init)


@pytest.mark.parametrize("solver", [only_documented, DeclaresInit()], ids=["documented", "init"])
def test_a_solver_gets_the_keywords_that_it_declares(solver):
    projector, own = (
        EStepProjector(0.1, 1.9, solver),
        EStepProjector(0.1, 1.9, warm_start=solver is not only_documented),
    )
    for seed in range(2):
        data, same = batch(seed=seed), batch(seed=seed)
        assert torch.equal(projector(data)["particles", "weight"], own(same)["particles", "weight"])
    assert projector.synchronizes
    if solver is not only_documented:
        assert bool(solver.last[0].isfinite())
    with pytest.raises(ValueError, match="infeasible='clip' needs a solver whose call declares"):
        EStepProjector(0.1, 1.9, solver, "clip")


def test_multipliers_are_kept_for_the_next_batch_and_in_checkpoints():
    def similar():
        data = batch(2)
        data["particles", "q_reward"] *= 1.05
        return data

    first = EStepProjector(0.1, [1.7, 1.8])
    first(batch(2))
    assert torch.equal(first.eta, first.solution.eta)
    assert torch.equal(first.lam, first.solution.lam)
    second = EStepProjector(0.5, [7.0, 7.0])
    second.load_state_dict(first.state_dict())
    assert float(second.epsilon) == 0.1
    assert second.cost_limits.tolist() == [1.7, 1.8]
    a, b = similar(), similar()
    first(a)
    second(b)
    assert torch.equal(a["particles", "weight"], b["particles", "weight"])
    assert int(first.solution.iterations) == int(second.solution.iterations)
    cold = EStepProjector(0.1, [1.7, 1.8], warm_start=False)
    cold(batch(2))
    c = similar()
    cold(c)
    assert int(cold.solution.iterations) > int(first.solution.iterations)
    torch.testing.assert_close(c["particles", "weight"], a["particles", "weight"])


def test_one_step_a_batch_follows_a_standing_problem():
    """What one warm-started step a batch does: after many batches it arrives, if nothing moves meanwhile."""
    projector = EStepProjector(0.1, [1.7, 1.8], solver=AdamDualSolver(steps=1, lr=0.02))
    residuals = []
    for _ in range(300):
        projector(batch(2))
        residuals.append(float(projector.solution.residual))
    assert residuals[0] > 0.05
    assert residuals[-1] < 0.2 * residuals[0]
    assert residuals[-1] > 1e-6


def test_recovery_multipliers_are_not_carried_over():
    projector = EStepProjector(0.1, 0.0)
    projector(batch())
    assert bool(projector.solution.recovered)
    assert bool(projector.eta.isnan())
    projector.set_cost_limits(2.1)
    projector(batch())
    assert bool(projector.solution.converged)
    assert bool(projector.solution.feasible)


def test_a_temperature_at_its_bound_is_not_carried_over():
    """Q_c = Q_r: the ball does not bind, so η stops at a bound that says nothing about the next batch."""
    data = batch()
    data["particles", "q_cost"] = data["particles", "q_reward"].unsqueeze(-1)
    projector = EStepProjector(0.1, 0.02)
    projector(data)
    assert bool(projector.solution.eta_at_min)
    assert not bool(projector.solution.recovered)
    assert bool(projector.eta.isnan())
    assert bool(projector.lam.isnan().all())
    fresh = EStepProjector(0.1, 2.1)
    projector.set_cost_limits(2.1)
    assert torch.equal(projector(batch())["particles", "weight"], fresh(batch())["particles", "weight"])
    assert int(projector.solution.iterations) == int(fresh.solution.iterations)


@pytest.mark.parametrize("infeasible", ["recover", "clip"])
def test_infeasible_is_flagged_either_way(infeasible):
    projector = EStepProjector(0.1, 0.0, infeasible=infeasible)
    projector(batch())
    assert not bool(projector.solution.feasible)
    assert bool(projector.solution.recovered) == (infeasible == "recover")
    # With the multiplier at 1e6 spreads, clipping comes as close to recovery as that allows.
    best = EStepProjector(0.1, 0.0)
    best(batch())
    torch.testing.assert_close(projector.solution.expected_cost, best.solution.expected_cost)


def test_limits_follow_a_schedule():
    projector = EStepProjector(0.1, [2.1])
    projector.set_cost_limits(1.9)
    projector(batch())
    assert float(projector.solution.expected_cost) == pytest.approx(1.9)
    with pytest.raises(ValueError, match="2 cost_limits cannot replace 1"):
        projector.set_cost_limits([1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        projector.set_cost_limits(torch.nan)


def test_limits_may_be_negative():
    """Those of an advantage: costs and limit are moved by the same amount, so the weights stay."""
    data = batch(dtype=torch.float64)
    weight = EStepProjector(0.1, 1.9)(data)["particles", "weight"].clone()
    data["particles", "q_cost"] -= 3.0
    projector = EStepProjector(0.1, 5.0)
    projector.set_cost_limits([-1.1])
    torch.testing.assert_close(projector(data)["particles", "weight"], weight, rtol=1e-6, atol=1e-9)
    assert float(projector.solution.expected_cost) == pytest.approx(-1.1)


def test_excluded_actions_may_hold_anything():
    log_prior = torch.zeros(20, 8)
    log_prior[:, 3] = -torch.inf
    data = batch(log_prior=log_prior)
    data["particles", "q_reward"][:, 3] = torch.nan
    weight = EStepProjector(0.1, 2.1)(data)["particles", "weight"]
    assert bool(weight.isfinite().all())
    assert weight[:, 3].abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), r"epsilon=0\.0 must be positive"),
        ((-1.0, 1.0), r"epsilon=-1\.0"),
        ((float("nan"), 1.0), "epsilon=nan"),
        ((0.1, -torch.inf), "finite"),
        ((0.1, [1.0, float("nan")]), "finite"),
        ((0.1, [[1.0]]), r"\[m\]"),
        ((0.1, 1.0, None, "ignore"), "infeasible='ignore'"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EStepProjector(*arguments)


def test_bad_batches_are_named():
    projector = EStepProjector(0.1, [1.0, 1.0])
    with pytest.raises(ValueError, match=r"2 cost_limits were given.*holds 1 costs"):
        projector(batch(1))
    data = batch(2)
    data["particles", "q_cost"][3, 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'particles', 'q_cost'\) holds 1 values that are not finite"):
        projector(data)
    data["particles", "q_reward"][3, 1] = torch.inf
    with pytest.raises(ValueError, match=r"'particles', 'q_reward'\)"):
        projector(data)
    with pytest.raises(ValueError, match="K >= 2"):
        projector(
            TensorDict(
                particles={"q_reward": torch.zeros(3, 1), "q_cost": torch.zeros(3, 1, 2)}, batch_size=[3]
            )
        )
    with pytest.raises(ValueError, match="log_prior"):
        projector(batch(2, log_prior=torch.full((20, 8), torch.nan)))


def test_unchecked_and_fixed_is_the_same():
    solver = NewtonDualSolver(fixed_iterations=20)
    fixed = EStepProjector(0.1, 1.9, solver=solver, check_finite=False)(batch())
    torch.testing.assert_close(
        fixed["particles", "weight"], EStepProjector(0.1, 1.9)(batch())["particles", "weight"]
    )


@pytest.mark.parametrize("m", [0, 1, 2])
def test_each_leading_index_is_a_problem_of_its_own(m):
    data = [batch(m, seed=seed) for seed in range(3)]
    together = EStepProjector(0.1, [1.9] * m)
    stacked = torch.stack(data).reshape(3, 20)
    for _ in range(2):  # cold, then warm
        weight = together(stacked)["particles", "weight"]
        for i, each in enumerate(data):
            alone = EStepProjector(0.1, [1.9] * m)
            torch.testing.assert_close(weight[i], alone(each)["particles", "weight"], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(together.lam[i], alone.lam, rtol=1e-6, atol=1e-9)
    assert together.eta.shape == (3,)
    assert int(together.solution.iterations.sum()) == 3  # from the multipliers of the first call
    single = together(data[0])["particles", "weight"]  # another number of problems starts cold
    torch.testing.assert_close(single, EStepProjector(0.1, [1.9] * m)(data[0])["particles", "weight"])
    assert together.eta.shape == ()


def test_multipliers_of_several_problems_are_in_the_checkpoint():
    first, second = EStepProjector(0.1, [1.9]), EStepProjector(0.1, [1.9])
    stacked = torch.stack([batch(seed=seed) for seed in range(3)])
    first(stacked)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eta, first.eta)
    second(stacked)
    assert int(second.solution.iterations.sum()) == 3
    first.load_state_dict(EStepProjector(0.1, [1.9]).state_dict())
    assert first.eta.shape == ()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16, torch.float16])
def test_weights_of_integer_and_half_precision_estimates_have_fractions(dtype):
    q_reward = torch.randint(0, 2, (20, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    q_cost = batch()["particles", "q_cost"]
    solved = NewtonDualSolver()(q_reward, q_cost, 0.1, torch.tensor([1.9]).double())
    exact = NewtonDualSolver()(q_reward.double(), q_cost, 0.1, torch.tensor([1.9]).double())
    assert solved.weight.dtype == torch.float32
    torch.testing.assert_close(solved.weight.double(), exact.weight, rtol=1e-6, atol=1e-9)
    particles = {"q_reward": q_reward, "q_cost": q_cost}
    weight = EStepProjector(0.1, 1.9)(TensorDict(particles=particles, batch_size=[20]))["particles", "weight"]
    torch.testing.assert_close(weight, solved.weight, rtol=1e-6, atol=1e-9)


def test_an_empty_batch_is_named():
    for solver in (NewtonDualSolver(), NewtonDualSolver(fixed_iterations=3), SLSQPDualSolver()):
        with pytest.raises(ValueError, match=r"q_reward of shape \(0, 8\) holds no state"):
            EStepProjector(0.1, 1.9, solver)(batch()[:0])


def test_a_state_without_any_allowed_action_is_named():
    log_prior = torch.zeros(20, 8)
    log_prior[7] = -torch.inf
    data = batch(log_prior=log_prior)
    with pytest.raises(ValueError, match="-inf for every action of state 7; at least one"):
        EStepProjector(0.1, 1.9)(data)
    values = data["particles", "q_reward"], data["particles", "q_cost"]
    with pytest.raises(ValueError, match="log_prior is no distribution in state 7: "):
        NewtonDualSolver()(*values, 0.1, torch.tensor([1.9]), log_prior)
    lead = [x.expand(2, *x.shape) for x in (*values, log_prior)]
    with pytest.raises(ValueError, match=r"state \(0, 7\)"):
        NewtonDualSolver()(*lead[:2], 0.1, torch.tensor([1.9]), lead[2])


def test_each_reason_to_forget_the_multipliers_counts_alone():
    """Recovered without η at its bound, and η at its bound without recovery."""
    recovered, bounded = EStepProjector(0.1, 0.0), EStepProjector(0.1, [])
    recovered(batch())
    assert bool(recovered.solution.recovered)
    assert not bool(recovered.solution.eta_at_min)
    data = batch(0)
    data["particles", "q_reward"][:] = torch.tensor([1.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    bounded.epsilon.fill_(10.0)
    bounded(data)
    assert bool(bounded.solution.eta_at_min)
    assert not bool(bounded.solution.recovered)
    for projector in (recovered, bounded):
        assert bool(projector.eta.isnan())
        assert bool(projector.lam.isnan().all())
