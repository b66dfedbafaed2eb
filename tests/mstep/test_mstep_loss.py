"""The M-step against torch.distributions, finite differences and problems solved in closed form."""

import copy
import math

import pytest
import torch
from devices import DEVICES
from host_copies import NoHostCopies
from scipy.optimize import brentq
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import HardUpdate, SoftUpdate

from safe_components.mstep import (
    HardTrustRegion,
    MStepLoss,
    NoTrustRegion,
    Retraction,
    SoftTrustRegion,
)
from safe_components.ops import gaussian_kl
from safe_components.policies import gaussian_policy

DOUBLE = torch.float64


class Table(nn.Module):
    """One Gaussian for every state, its mean and Cholesky factor free parameters."""

    def __init__(self, loc, scale_tril):
        super().__init__()
        self.loc = nn.Parameter(torch.as_tensor(loc, dtype=DOUBLE).clone())
        self.tril = nn.Parameter(torch.as_tensor(scale_tril, dtype=DOUBLE).clone())

    def forward(self, observation):
        lead = observation.shape[:-1]
        return self.loc.expand(*lead, -1), self.tril.tril().expand(*lead, -1, -1)


def actor(module, kind=ProbabilisticActor):
    return kind(
        TensorDictModule(module, ["observation"], ["loc", "scale_tril"]),
        in_keys=["loc", "scale_tril"],
        distribution_class=MultivariateNormal,
    )


def random_tril(*lead, size, condition=1.0):
    """Factors whose diagonal runs over ``sqrt(condition)``; unit lower triangles of moderate size."""
    diagonal = torch.logspace(0, -0.5 * math.log10(condition), size, dtype=DOUBLE)
    lower = 0.3 * torch.randn(*lead, size, size, dtype=DOUBLE).tril(-1) + torch.eye(size, dtype=DOUBLE)
    return diagonal.unsqueeze(-1) * lower


def problem(states=6, particles=16, size=3, *, covariance="full", dtype=DOUBLE, device="cpu", seed=0):
    """A policy moved away from its old self, and weighted particles drawn from the old one."""
    torch.manual_seed(seed)
    policy = gaussian_policy(4, [-1.0] * size, [2.0] * size, covariance=covariance, hidden_sizes=(16,))
    policy = policy.to(device).to(dtype)
    observation = torch.randn(states, 4, dtype=dtype, device=device)
    batch = TensorDict({"observation": observation}, [states])
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * torch.randn_like(p))
        action = policy.get_dist(batch).sample((particles,)).movedim(0, 1)
    batch["particles"] = TensorDict(
        action=action,
        weight=torch.softmax(torch.randn(states, particles, dtype=dtype, device=device), -1),
        batch_size=states,
    )
    return policy, batch


def attached(policy, region, **kwargs):
    loss = MStepLoss(policy, region, **kwargs)
    return loss, SoftUpdate(loss, tau=0.1)


def move(policy, scale=0.1):
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn_like(p))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
def test_every_term_equals_its_direct_sum(likelihood, covariance, dtype, device):
    policy, batch = problem(covariance=covariance, dtype=dtype, device=device)
    loss, _ = attached(policy, SoftTrustRegion(3.0, 7.0), likelihood=likelihood)
    loss.to(device)
    with torch.no_grad():
        old = policy.get_dist(batch)
        old = MultivariateNormal(old.loc.double(), scale_tril=old.scale_tril.double())
        move(policy)
        new = policy.get_dist(batch)
        new = MultivariateNormal(new.loc.double(), scale_tril=new.scale_tril.double())
    out = loss(batch)
    moved_mean = MultivariateNormal(new.loc, scale_tril=old.scale_tril)
    moved_cov = MultivariateNormal(old.loc, scale_tril=new.scale_tril)
    action, q = batch["particles", "action"].double(), batch["particles", "weight"].double()

    def fit(dist):
        return (q * dist.log_prob(action.movedim(1, 0)).movedim(0, 1)).sum(1).mean()

    expected = {
        "kl_mean": kl_divergence(old, moved_mean).mean(),
        "kl_cov": kl_divergence(old, moved_cov).mean(),
        "log_likelihood_mean": fit(moved_mean),
        "log_likelihood_cov": fit(moved_cov),
        "entropy": new.entropy().mean(),
        "alpha_mean": torch.tensor(3.0, dtype=DOUBLE, device=device),
        "alpha_cov": torch.tensor(7.0, dtype=DOUBLE, device=device),
        "loss_trust_region": torch.tensor(0.0, dtype=DOUBLE, device=device),
    }
    decoupled = expected["log_likelihood_mean"] + expected["log_likelihood_cov"]
    expected["log_likelihood"] = decoupled if likelihood == "decoupled" else fit(new)
    penalty = 3.0 * expected["kl_mean"] + 7.0 * expected["kl_cov"]
    expected["loss_policy"] = penalty - expected["log_likelihood"]
    tolerance = 1e-10 if dtype == DOUBLE else 1e-4
    for name, value in expected.items():
        assert out[name].dtype == dtype
        torch.testing.assert_close(
            out[name].detach().double(), value, rtol=tolerance, atol=tolerance, msg=name
        )
    old_kl = gaussian_kl(old.loc, old.scale_tril, new.loc, new.scale_tril)
    torch.testing.assert_close(out["kl_mean"].double(), old_kl[0].mean(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(out["kl_cov"].double(), old_kl[1].mean(), rtol=tolerance, atol=tolerance)
    assert {k for k, v in out.items() if v.requires_grad} == {"loss_policy"}


def test_divergences_with_ill_conditioned_covariances():
    """12 actions, covariance of condition 1e8: equal to torch.distributions to 1e-8."""
    torch.manual_seed(0)
    tril_old, tril = (random_tril(size=12, condition=1e8) for _ in range(2))
    loc_old = torch.randn(12, dtype=DOUBLE)
    loc = loc_old + tril_old @ torch.randn(12, dtype=DOUBLE)
    table = Table(loc_old, tril_old)
    loss, _ = attached(actor(table), NoTrustRegion())
    with torch.no_grad():
        table.loc.copy_(loc)
        table.tril.copy_(tril)
    old = MultivariateNormal(loc_old, scale_tril=tril_old)
    action = old.sample((1, 16))
    out = loss(particles_of(action, torch.full((1, 16), 1 / 16, dtype=DOUBLE)))
    assert torch.linalg.cond(old.covariance_matrix) > 1e7
    moved_mean = MultivariateNormal(loc, scale_tril=tril_old)
    moved_cov = MultivariateNormal(loc_old, scale_tril=tril)
    for name, dist in (("mean", moved_mean), ("cov", moved_cov)):
        torch.testing.assert_close(out[f"kl_{name}"], kl_divergence(old, dist), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            out[f"log_likelihood_{name}"], dist.log_prob(action).mean(), rtol=1e-8, atol=1e-8
        )


def particles_of(action, weight):
    states = action.shape[0]
    inner = TensorDict(action=action, weight=weight, batch_size=states)
    return TensorDict(observation=torch.zeros(states, 1, dtype=DOUBLE), particles=inner, batch_size=states)


@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_gradient_equals_finite_differences(covariance, likelihood):
    policy, batch = problem(covariance=covariance)
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01, init_alpha=2.0), likelihood=likelihood)
    move(policy, 0.05)
    parameters = list(policy.parameters())
    gradient = torch.autograd.grad(loss(batch)["loss_policy"], parameters)
    direction, step = [torch.randn_like(p) for p in parameters], 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
            values.append(loss(batch)["loss_policy"])
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    # Central differences: error of order step^2 times the third derivative.
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-6, atol=1e-7)


def test_no_gradient_at_the_old_policy_when_the_weights_say_nothing():
    """The particles ``μ ± sqrt(a) L e_i`` have the old mean and covariance exactly."""
    policy, batch = problem(size=3)
    dist = policy.get_dist(batch)
    offsets = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).to(DOUBLE)
    action = dist.loc.unsqueeze(1) + offsets @ dist.scale_tril.mT
    weight = torch.full((6, 6), 1 / 6, dtype=DOUBLE)
    batch["particles"] = TensorDict(action=action.detach(), weight=weight, batch_size=6)
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01))
    gradient = torch.autograd.grad(loss(batch)["loss_policy"], list(policy.parameters()))
    assert max(g.abs().amax() for g in gradient) < 1e-12


@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
def test_old_policy_receives_no_gradient_and_losses_move_only_their_own(likelihood):
    policy, batch = problem()
    region = HardTrustRegion(0.01, 0.01).to(DOUBLE)
    loss, _ = attached(policy, region, likelihood=likelihood)
    move(policy)
    out = loss(batch)
    out["loss_policy"].backward(retain_graph=True)
    assert region.raw.grad is None
    assert all(p.grad.abs().sum() > 0 for p in policy.parameters())
    assert not any(p.requires_grad for p in loss.target_policy_params.values(True, True))
    policy.zero_grad()
    out["loss_trust_region"].backward()
    assert all(p.grad is None for p in policy.parameters())
    slack = torch.stack([0.01 - out["kl_mean"], 0.01 - out["kl_cov"]])
    torch.testing.assert_close(region.raw.grad, slack * torch.sigmoid(region.raw.detach()))


@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
def test_an_old_policy_given_with_the_particles_receives_no_gradient(likelihood):
    policy, batch = problem()
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01), likelihood=likelihood)
    for key in ("loc", "scale_tril"):
        batch["particles", key] = getattr(policy.get_dist(batch), key).detach().requires_grad_()
    given = loss(batch)
    assert given["kl_mean"] == 0.0
    assert given["kl_cov"].abs() < 1e-12
    given["loss_policy"].backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert all(batch["particles", key].grad is None for key in ("loc", "scale_tril"))


def test_the_gaussian_given_with_the_particles_is_the_old_policy():
    policy, batch = problem()
    loss, updater = attached(policy, NoTrustRegion())
    with torch.no_grad():
        old = policy.get_dist(batch)
    move(policy)
    from_target = loss(batch)
    batch["particles", "loc"], batch["particles", "scale_tril"] = old.loc, old.scale_tril
    updater.eps = 0.0
    updater.step()  # the target is now the moved policy; the particles still say otherwise
    given = loss(batch)
    for name in loss.out_keys:
        torch.testing.assert_close(given[name], from_target[name], rtol=1e-12, atol=1e-12)


def weighted_cloud(seed=0, size=2):
    """Old Gaussian, particles and weights whose mean and spread differ from it."""
    torch.manual_seed(seed)
    loc, tril = torch.randn(size, dtype=DOUBLE), random_tril(size=size, condition=10.0)
    action = (loc + torch.randn(40, size, dtype=DOUBLE) @ tril.mT).unsqueeze(0)
    return loc, tril, action, torch.softmax(torch.randn(1, 40, dtype=DOUBLE), -1)


@pytest.mark.parametrize(
    ("region", "coef_mean", "coef_cov"), [(NoTrustRegion(), 0.0, 0.0), (SoftTrustRegion(2.0, 5.0), 2.0, 5.0)]
)
def test_gradient_vanishes_at_the_closed_form_of_soft_and_no_trust_region(region, coef_mean, coef_cov):
    """``μ = μ_old + (E a - μ_old)/(1+c_μ)`` and ``Σ = (S + c_Σ Σ_old)/(1+c_Σ)``, S the spread about μ_old."""
    loc, tril, action, q = weighted_cloud()
    table = Table(loc, tril)
    loss, _ = attached(actor(table), region)
    offset = action[0] - loc
    mean = q[0] @ offset
    spread = (q[0, :, None] * offset).mT @ offset
    with torch.no_grad():
        table.loc.copy_(loc + mean / (1 + coef_mean))
        table.tril.copy_(torch.linalg.cholesky((spread + coef_cov * tril @ tril.mT) / (1 + coef_cov)))
    loss(particles_of(action, q))["loss_policy"].backward()
    assert table.loc.grad.abs().amax() < 1e-10
    assert table.tril.grad.abs().amax() < 1e-10


def test_joint_likelihood_without_trust_region_is_maximal_at_weighted_mean_and_covariance():
    loc, tril, action, q = weighted_cloud()
    table = Table(loc, tril)
    loss, _ = attached(actor(table), NoTrustRegion(), likelihood="joint")
    mean = q[0] @ action[0]
    offset = action[0] - mean
    with torch.no_grad():
        table.loc.copy_(mean)
        table.tril.copy_(torch.linalg.cholesky((q[0, :, None] * offset).mT @ offset))
    loss(particles_of(action, q))["loss_policy"].backward()
    assert table.loc.grad.abs().amax() < 1e-10
    assert table.tril.grad.abs().amax() < 1e-10


def test_hard_trust_region_ends_on_the_boundary_of_both_constraints():
    """One action, old N(0, 1), particles with mean e and second moment s.

    Mean: max e δ - ½ δ²  s.t. ½ δ² ≤ ε_μ   gives δ = sqrt(2 ε_μ), α_μ = e / δ - 1.
    Covariance r: max -½ (log r + s / r)  s.t. ½ (log r - 1 + 1/r) ≤ ε_Σ; with s < r < 1 on the boundary
    stationarity, -(r - s) + α_Σ (1 - r) = 0, gives α_Σ = (r - s) / (1 - r).
    """
    mean, second, bound_mean, bound_cov = 0.4, 0.36, 0.01, 0.005
    spread = math.sqrt(second - mean**2)
    action = torch.tensor([[[mean + spread], [mean - spread]]], dtype=DOUBLE)
    table = Table([0.0], [[1.0]])
    region = HardTrustRegion(bound_mean, bound_cov).to(DOUBLE)
    loss, _ = attached(actor(table), region)
    batch = particles_of(action, torch.full((1, 2), 0.5, dtype=DOUBLE))
    optimizers = torch.optim.Adam(table.parameters(), 0.01), torch.optim.Adam(region.parameters(), 0.1)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.997) for o in optimizers]
    prepared = loss.prepare(batch)
    for _ in range(1500):
        out = loss(prepared)
        for optimizer, name in zip(optimizers, ("loss_policy", "loss_trust_region"), strict=True):
            optimizer.zero_grad()
            out[name].backward()
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    shift = math.sqrt(2 * bound_mean)
    ratio = brentq(lambda r: 0.5 * (math.log(r) - 1 + 1 / r) - bound_cov, 0.5, 1.0)
    assert second < ratio
    assert table.loc.item() == pytest.approx(shift, rel=0.01)
    assert table.tril.item() ** 2 == pytest.approx(ratio, rel=0.01)
    assert out["kl_mean"].item() == pytest.approx(bound_mean, rel=0.02)
    assert out["kl_cov"].item() == pytest.approx(bound_cov, rel=0.02)
    assert out["alpha_mean"].item() == pytest.approx(mean / shift - 1, rel=0.03)
    assert out["alpha_cov"].item() == pytest.approx((ratio - second) / (1 - ratio), rel=0.03)


@pytest.mark.parametrize("kind", [HardUpdate, SoftUpdate])
def test_old_policy_follows_by_polyak_average_or_copy(kind):
    policy, _ = problem()
    loss = MStepLoss(policy, NoTrustRegion())
    updater = (
        SoftUpdate(loss, tau=0.25)
        if kind is SoftUpdate
        else HardUpdate(loss, value_network_update_interval=0)
    )
    before = {k: v.clone() for k, v in loss.target_policy_params.items(True, True)}
    move(policy)
    share = 0.25 if kind is SoftUpdate else 1.0
    updater.step()
    for key, new in policy.named_parameters():
        key = tuple(key.split("."))
        value = before[key] + share * (new.detach() - before[key])
        torch.testing.assert_close(loss.target_policy_params[key].data, value)


@pytest.mark.parametrize("single_network", [True, False])
def test_calls_leave_the_old_policy_a_buffer_of_the_loss(single_network):
    policy, batch = problem()
    loss, updater = attached(policy, HardTrustRegion(0.01, 0.01))
    if not single_network:
        as_composed(loss)
    parameters = {id(p) for p in (*policy.parameters(), *loss.trust_region.parameters())}
    for _ in range(2):
        assert {id(p) for p in loss.parameters()} == parameters
        loss(batch)
        updater.step()


@pytest.mark.parametrize("given", [True, False])
def test_a_single_network_is_called_directly_with_the_same_result(given):
    policy, batch = problem()
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01))
    if given:
        with torch.no_grad():
            old = policy.get_dist(batch)
        batch["particles", "loc"], batch["particles", "scale_tril"] = old.loc, old.scale_tril
    move(policy)
    direct, direct_gradient = with_gradient(loss, batch)
    as_composed(loss)
    composed, composed_gradient = with_gradient(loss, batch)
    assert direct["kl_mean"] > 0.0
    torch.testing.assert_close(direct, composed, rtol=0, atol=0)
    torch.testing.assert_close(direct_gradient, composed_gradient, rtol=0, atol=0)


def as_composed(loss):
    """Make the loss take the path of actors that are more than a network and a distribution."""
    assert loss._network is not None
    loss._network = None


def with_gradient(loss, batch):
    out, parameters = loss(batch), list(loss.policy_params.parameters())
    return out.detach().to_dict(), torch.autograd.grad(out["loss_policy"], parameters)


def test_state_dict_round_trip_restores_policy_target_and_multipliers():
    one, batch = problem(seed=0)
    two, _ = problem(seed=1)
    first, updater = attached(one, HardTrustRegion(0.01, 0.02, init_alpha=3.0))
    second, _ = attached(two, HardTrustRegion(0.01, 0.02))
    move(one)
    updater.step()
    second.load_state_dict(first.state_dict())
    results = [loss(batch) for loss in (first, second)]
    for name in first.out_keys:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=0)
    assert results[0]["kl_mean"] > 0


def test_composed_actors_give_what_plain_ones_do():
    policy, batch = problem()
    loss, _ = attached(policy, NoTrustRegion())
    plain = loss(batch)
    encoder = TensorDictModule(nn.Identity(), ["observation"], ["features"])
    head = TensorDictModule(policy[0].module, ["features"], ["loc", "scale_tril"])
    composed = ProbabilisticTensorDictSequential(encoder, head, policy[1])
    other, _ = attached(composed, NoTrustRegion())
    before = set(batch.keys(True))
    torch.testing.assert_close(other(batch)["loss_policy"], plain["loss_policy"], rtol=0, atol=0)
    assert set(batch.keys(True)) == before  # nothing is written into the input


def test_one_state_axis_or_several_and_keyword_calls_agree():
    policy, batch = problem(states=6)
    loss, _ = attached(policy, SoftTrustRegion(1.0, 1.0))
    expected = loss(batch)["loss_policy"]
    torch.testing.assert_close(loss(batch.reshape(2, 3))["loss_policy"], expected)
    entries = {"_".join(k) if isinstance(k, tuple) else k: batch[k] for k in loss.in_keys}
    torch.testing.assert_close(loss(**entries)[0], expected)


def test_wrong_shapes_and_weights_are_named():
    policy, batch = problem()
    loss, _ = attached(policy, NoTrustRegion())
    wrong = batch.clone()
    wrong["particles", "weight"] = wrong["particles", "weight"] * 1.1
    with pytest.raises(ValueError, match="sum to 1"):
        loss(wrong)
    wrong["particles", "weight"] = wrong["particles", "weight"] * torch.nan
    with pytest.raises(ValueError, match="sum to 1"):
        loss(wrong)
    wrong["particles", "weight"] = batch["particles", "weight"][:, :-1]
    with pytest.raises(ValueError, match="weight"):
        loss(wrong)
    wrong = batch.clone()
    wrong["particles", "action"] = batch["particles", "action"][..., :2]
    with pytest.raises(ValueError, match="action"):
        loss(wrong)
    wrong = batch.clone()
    wrong["particles", "loc"] = torch.zeros(6, 2, dtype=DOUBLE)
    wrong["particles", "scale_tril"] = torch.zeros(6, 2, 2, dtype=DOUBLE)
    with pytest.raises(ValueError, match="old policy"):
        loss(wrong)
    with pytest.raises(KeyError, match="particles"):
        loss(batch.exclude("particles"))
    with pytest.raises(ValueError, match="likelihood='map'"):
        MStepLoss(policy, NoTrustRegion(), likelihood="map")
    loss.set_keys(scale_tril="scale")
    with pytest.raises(KeyError, match="scale"):
        loss(batch)


def test_unchecked_weights_still_equal_the_direct_sum():
    policy, batch = problem()
    batch["particles", "weight"] *= 2.5
    loss, _ = attached(policy, NoTrustRegion(), check_weights=False)
    with torch.no_grad():
        dist = policy.get_dist(batch)
    action, q = batch["particles", "action"], batch["particles", "weight"]
    expected = (q * dist.log_prob(action.movedim(1, 0)).movedim(0, 1)).sum(1).mean()
    out = loss(batch)
    torch.testing.assert_close(out["log_likelihood_mean"], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out["log_likelihood_cov"], expected, rtol=1e-10, atol=1e-10)


def test_an_empty_axis_of_states_is_named():
    policy, batch = problem()
    loss, _ = attached(policy, NoTrustRegion())
    with pytest.raises(ValueError, match=r"\(2, 0\) holds no state"):
        loss(batch.reshape(2, 3)[:, :0])


@pytest.mark.parametrize(("check", "waits"), [(None, False), (False, False), (True, True)])
def test_only_a_check_that_was_asked_for_makes_the_host_wait(check, waits):
    policy, _ = problem()
    loss, _ = attached(policy, NoTrustRegion(), check_weights=check)
    assert loss.synchronizes is waits


def test_prepared_once_and_at_every_call_are_the_same():
    policy, batch = problem()
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01))
    before = set(batch.keys(True))
    prepared = loss.prepare(batch)
    assert set(batch.keys(True)) == before
    for _ in range(3):
        move(policy, 0.02)
        once, once_gradient = with_gradient(loss, prepared)
        always, always_gradient = with_gradient(loss, batch)
        torch.testing.assert_close(once, always, rtol=0, atol=0)
        torch.testing.assert_close(once_gradient, always_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("changed", ["action", "weight", "loc", "scale_tril"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_plain_batch_is_read_anew_and_a_prepared_one_is_not(changed, in_place):
    policy, batch = problem()
    with torch.no_grad():
        old = policy.get_dist(batch)
    batch["particles", "loc"], batch["particles", "scale_tril"] = old.loc, old.scale_tril
    loss, _ = attached(policy, NoTrustRegion())
    prepared = loss.prepare(batch.clone())
    before = loss(batch)["loss_policy"].item()
    entry = batch["particles", changed]
    other = entry.flip(-1) if changed == "weight" else 0.5 * entry
    if in_place:
        entry.copy_(other)
    else:
        batch["particles", changed] = other
    fresh, _ = attached(policy, NoTrustRegion())
    assert loss(batch)["loss_policy"].item() == fresh(batch)["loss_policy"].item() != before
    assert loss(prepared)["loss_policy"].item() == before


def trained(loss, batch, steps=30):
    """Fit the policy of ``loss`` and return its parameters."""
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    prepared = loss.prepare(batch)
    first = loss(prepared)["log_likelihood"]
    for _ in range(steps):
        out = loss(prepared)
        optimizer.zero_grad()
        (out["loss_policy"] + out["loss_trust_region"]).backward()
        optimizer.step()
    assert out["log_likelihood"] > first
    return [p.detach().clone() for p in loss.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_deep_copy_trains_as_the_original_does_and_apart_from_it(loaded, dtype):
    policy, batch = problem(dtype=torch.float32)
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01))
    twin = copy.deepcopy(loss)
    if loaded:
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        twin.load_state_dict(loss.state_dict())
    batch, loss, twin = batch.to(dtype), loss.to(dtype), twin.to(dtype)
    start = [p.detach().clone() for p in loss.parameters()]
    copied = trained(twin, batch)
    assert all(torch.equal(p, q) for p, q in zip(loss.parameters(), start, strict=True))
    original = trained(loss, batch)
    assert original[0].dtype == dtype
    torch.testing.assert_close(copied, original, rtol=0, atol=0)
    assert not any(torch.equal(p, q) for p, q in zip(start, original, strict=True))


def test_the_policy_moves_with_the_loss():
    """Parameters and buffers alike, so that the policy remains of use on its own."""
    policy, batch = problem(dtype=torch.float32)
    loss, _ = attached(policy, NoTrustRegion())
    loss.to(DOUBLE)
    assert {x.dtype for x in (*policy.parameters(), *policy.buffers())} == {DOUBLE}
    assert policy.get_dist(batch.to(DOUBLE)).loc.dtype == DOUBLE
    assert loss._policy_is_current()  # nothing is swapped in a step of training


def test_parameters_swapped_into_the_loss_are_those_computed_with():
    policy, batch = problem()
    loss, _ = attached(policy, SoftTrustRegion(1.0, 1.0))
    other, _ = problem(seed=1)
    prepared, expected = loss.prepare(batch), attached(other, SoftTrustRegion(1.0, 1.0))[0]
    expected = expected(prepared)["loss_policy"]
    before = loss(prepared)["loss_policy"]
    params = TensorDict.from_module(loss).clone()
    params["policy_params"] = TensorDict.from_module(other).clone()
    with params.to_module(loss):
        swapped = loss(prepared)["loss_policy"]
    torch.testing.assert_close(swapped, expected, rtol=0, atol=0)
    torch.testing.assert_close(loss(prepared)["loss_policy"], before, rtol=0, atol=0)


@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
@pytest.mark.parametrize("size", [2, 3])
def test_an_m_step_can_be_recorded_from_its_first_call_on(size, likelihood):
    """Nothing is copied from the host, and the host reads nothing."""
    policy, batch = problem(size=size, dtype=torch.float32)
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01), likelihood=likelihood, check_weights=False)
    assert not loss.synchronizes
    retraction = Retraction(loss, 0.01, 0.01)
    with NoHostCopies():
        prepared = loss.prepare(batch)
        for _ in range(2):
            out = loss(prepared)
            (out["loss_policy"] + out["loss_trust_region"]).backward()
            retraction.step(out["kl_mean"], out["kl_cov"])


@pytest.mark.filterwarnings("ignore")  # what the compiler warns of lies in PyTorch and TensorDict
def test_a_step_compiles_to_one_graph_with_the_same_result():
    policy, batch = problem()
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.01))
    prepared = loss.prepare(batch)
    move(policy)

    def step(prepared):
        out = loss(prepared)
        return out["loss_policy"], out["loss_trust_region"], out["entropy"], out["kl_mean"], out["kl_cov"]

    results = []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        out = call(prepared)
        gradient = torch.autograd.grad(out[0] + out[1], list(loss.parameters()))
        results.append([*(x.detach() for x in out), *gradient])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_large_observations_give_finite_gradients(covariance, scale):
    policy, batch = problem(size=2, covariance=covariance, dtype=torch.float32)
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.001))
    batch["observation"] *= scale
    out = loss(batch)
    (out["loss_policy"] + out["loss_trust_region"]).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in loss.parameters())


@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
def test_a_covariance_that_cannot_be_inverted_is_named(likelihood):
    """Entries of a full covariance that are 1e9 times its diagonal, six times in a row."""
    policy, batch = problem(size=6, dtype=torch.float32)
    loss, _ = attached(policy, HardTrustRegion(0.01, 0.001), likelihood=likelihood)
    batch["observation"] *= 1e9
    with pytest.raises(ValueError, match=r"cannot be inverted in torch\.float32. Scale the observations"):
        loss(batch)
