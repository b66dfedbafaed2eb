"""Properties of E-step, M-step, critics and multipliers on generated extremes, the same in every run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate

from safe_components.critics import ConstrainedQEnsemble, TDLoss
from safe_components.estep import NewtonDualSolver
from safe_components.lagrangian import GradientMultiplier, PIDMultiplier
from safe_components.mstep import HardTrustRegion, MStepLoss
from safe_components.policies import deterministic_policy

drawn = settings(
    derandomize=True, deadline=None, database=None, max_examples=40, suppress_health_check=list(HealthCheck)
)
SCALES = st.floats(-8, 8).map(lambda power: 10.0**power)
DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def esteps(draw):
    """Scales, equal scores, one dominating particle, excluded actions, zero and equal costs, K = 2, B = 1."""
    states, particles = draw(st.sampled_from([(1, 2), (1, 5), (4, 2), (5, 8)]))
    m, dtype = draw(st.integers(0, 3)), draw(DTYPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    reward = rng.standard_normal((states, particles))
    kind = draw(st.sampled_from(["normal", "equal", "equal in a state", "dominating"]))
    if kind == "equal":
        reward[:] = 1.0
    elif kind == "equal in a state":
        reward[:] = reward[:, :1]
    elif kind == "dominating":
        reward[:, 0] += 1e6
    cost = rng.standard_normal((states, particles, m))
    costs = draw(st.sampled_from(["normal", "zero", "constant", "equal", "reward"]))
    if m and costs == "zero":
        cost[..., 0] = 0.0
    elif m and costs == "constant":
        cost[..., 0] = 3.0
    elif m and costs == "equal":
        cost[:] = cost[..., :1]
    elif m and costs == "reward":
        cost[..., 0] = reward
    scale = np.array([draw(SCALES) for _ in range(m)])
    reward, cost = reward * draw(SCALES), cost * scale
    prior = None
    if draw(st.booleans()):
        prior = rng.standard_normal((states, particles)) * draw(st.sampled_from([1.0, 30.0]))
        prior[rng.random((states, particles)) < 0.3] = -np.inf
        prior[:, 0] = 0.0
    limits = cost.mean((0, 1)) + rng.uniform(-2, 1, m) * scale
    tensors = [torch.tensor(x).to(dtype) for x in (reward, cost)]
    log_prior = None if prior is None else torch.tensor(prior).to(dtype)
    epsilon = draw(st.sampled_from([1e-4, 0.1, 2.0]))
    infeasible = draw(st.sampled_from(["recover", "clip"]))
    return *tensors, epsilon, torch.tensor(limits), log_prior, infeasible


@drawn
@given(esteps(), st.sampled_from([None, 30]))
def test_an_estep_keeps_its_ball_and_limits_or_says_so(problem, fixed):
    """The status is true of the weights: everything is computed anew from them, in float64."""
    reward, cost, epsilon, limits, log_prior, infeasible = problem
    solution = NewtonDualSolver(fixed_iterations=fixed)(
        reward, cost, epsilon, limits, log_prior, infeasible=infeasible
    )
    for value in vars(solution).values():
        assert bool(value.isfinite().all())
    weight, reward, cost = (x.double() for x in (solution.weight, reward, cost))
    rounding = 4 * float(torch.finfo(solution.weight.dtype).eps)
    assert bool((weight >= 0).all())
    assert float((weight.sum(-1) - 1).abs().max()) <= 8 * rounding
    prior = torch.zeros_like(weight) if log_prior is None else log_prior.double()
    prior = prior.log_softmax(-1)
    allowed = ~prior.isneginf()
    assert not bool(weight[~allowed].any())
    terms = torch.xlogy(weight, weight) - torch.where(weight > 0, weight * prior, 0.0)
    divergence = float(terms.sum(-1).mean())
    nats = 1.0 + float(prior[allowed].abs().max())
    assert abs(divergence - float(solution.kl)) <= 100 * rounding * nats + 1e-7 * divergence
    cost = torch.where(allowed.unsqueeze(-1), cost, 0.0)
    expected = (weight.unsqueeze(-1) * cost).sum(-2).mean(0)
    size = cost.abs().amax((0, 1))
    assert bool(((expected - solution.expected_cost).abs() <= 10 * rounding * size).all())
    earned, most = (weight * torch.where(allowed, reward, 0.0)).sum(-1).mean(), float(reward.abs().max())
    assert abs(float(earned - solution.expected_reward)) <= 10 * rounding * most
    if bool(solution.converged):
        assert divergence <= epsilon * (1 + 1e-6) + 100 * rounding * nats
        if bool(solution.feasible):
            over = expected - limits
            assert bool((solution.lam_clipped | (over <= (10 * rounding + 2e-6) * size)).all())


@drawn
@given(
    st.integers(0, 2**16),
    st.integers(1, 4),
    st.floats(-4, 2),
    st.floats(-3, 3),
    st.sampled_from([1, 5]),
    DTYPES,
)
def test_an_m_step_is_finite_and_its_divergences_are_not_negative(seed, size, spread, moved, states, dtype):
    """Covariances from tiny to large, with means many deviations away."""
    torch.manual_seed(seed)

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.randn(size, dtype=dtype) * 10.0**spread)
            lower = 0.3 * torch.randn(size, size, dtype=dtype).tril(-1) + torch.eye(size, dtype=dtype)
            self.tril = torch.nn.Parameter(10.0**spread * lower)

        def forward(self, observation):
            lead = observation.shape[:-1]
            return self.loc.expand(*lead, -1), self.tril.tril().expand(*lead, -1, -1)

    policy = ProbabilisticActor(
        TensorDictModule(Table(), ["observation"], ["loc", "scale_tril"]),
        in_keys=["loc", "scale_tril"],
        distribution_class=torch.distributions.MultivariateNormal,
    )
    loss = MStepLoss(policy, HardTrustRegion(0.01, 0.001))
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():
        policy.module[0].module.loc += 10.0 ** (spread + moved)
        policy.module[0].module.tril *= 1.5
    action = 10.0**spread * torch.randn(states, 2, size, dtype=dtype)
    weight = torch.randn(states, 2, dtype=dtype).softmax(-1)
    particles = TensorDict(action=action, weight=weight, batch_size=states)
    data = TensorDict(observation=torch.zeros(states, 1, dtype=dtype), particles=particles, batch_size=states)
    out = loss(data)
    (out["loss_policy"] + out["loss_trust_region"]).backward()
    assert all(bool(value.isfinite().all()) for value in out.values())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in loss.parameters())
    assert float(out["kl_mean"]) >= 0.0
    expected = size * (0.5 / 1.5**2 - 0.5 + math.log(1.5))  # of a factor 1.5 on every deviation
    assert float(out["kl_cov"]) == pytest.approx(expected, rel=1e-3)


@drawn
@given(st.integers(0, 2**16), SCALES, SCALES, st.floats(0, 1), st.sampled_from([1, 6]), st.booleans())
def test_a_target_is_finite_and_between_its_bounds(seed, unit, size, gamma, states, zero):
    torch.manual_seed(seed)
    critic = ConstrainedQEnsemble(3, 2, 2, 1, hidden_sizes=(8,))
    loss = TDLoss(critic, deterministic_policy(3, [-1.0] * 2, [1.0] * 2, hidden_sizes=(8,)), gamma=gamma)
    SoftUpdate(loss, tau=0.1)
    following = TensorDict(
        observation=unit * torch.randn(states, 3),
        reward=size * torch.randn(states, 1),
        cost=torch.zeros(states, 1) if zero else size * torch.rand(states, 1),
        terminated=torch.rand(states, 1) < 0.5,
        batch_size=states,
    )
    data = TensorDict(
        observation=unit * torch.randn(states, 3),
        action=torch.randn(states, 2),
        next=following,
        batch_size=states,
    )
    ended = following["terminated"]
    for target, entry in zip(loss.targets(data), ("reward", "cost"), strict=True):
        assert bool(target.isfinite().all())
        assert torch.equal(target[ended], following[entry][ended])
    out = loss(data)
    out["loss_q"].backward()
    assert all(bool(out[name].isfinite().all()) for name in loss.out_keys)


@drawn
@given(
    st.lists(st.floats(0, 1e8), min_size=1, max_size=30),
    SCALES,
    st.floats(1e-8, 1e4),
    st.sampled_from(["gradient", "pid"]),
)
def test_a_multiplier_stays_within_its_bounds_and_says_where_it_is(costs, limit, cap, kind):
    if kind == "gradient":
        multiplier = GradientMultiplier(limit, lr=0.1, max_value=cap)
    else:
        multiplier = PIDMultiplier(limit, max_value=cap)
    for cost in costs:
        lam = multiplier.update(cost)
        assert 0.0 <= float(lam) <= cap
        assert bool(multiplier.clipped) == (float(lam) == cap)
    assert torch.equal(lam, multiplier())
