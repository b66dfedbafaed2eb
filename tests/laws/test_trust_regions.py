"""Laws of every trust region of the M-step. A new one joins with one line in `REGIONS`."""

import copy

import pytest
import torch
from devices import DEVICES
from host_copies import NoHostCopies
from tensordict import TensorDict
from torchrl.objectives import HardUpdate

from safe_components.mstep import HardTrustRegion, MStepLoss, NoTrustRegion, SoftTrustRegion
from safe_components.policies import gaussian_policy

REGIONS = {
    "hard": lambda: HardTrustRegion(0.02, 0.003),
    "hard, capped": lambda: HardTrustRegion(0.02, 0.003, init_alpha=1.5, max_alpha=2.0),
    "soft": lambda: SoftTrustRegion(2.0, 8.0),
    "none": NoTrustRegion,
}
# Divergences (C_μ, C_Σ) in nats: at the old policy, on either side of every bound, far outside.
DIVERGENCES = [(0.0, 0.0), (0.5, 1e-4), (1e-4, 0.5), (100.0, 100.0)]

every_region = pytest.mark.parametrize("make", REGIONS.values(), ids=REGIONS.keys())


def divergences(values, dtype=torch.float32, device="cpu"):
    return [torch.tensor(v, dtype=dtype, device=device, requires_grad=True) for v in values]


def gradients(value, inputs):
    """Gradients, zero for inputs on which ``value`` does not depend."""
    inputs = list(inputs)
    if not value.requires_grad or not inputs:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True))


@every_region
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", DIVERGENCES)
def test_penalty_is_the_weighted_sum_of_the_divergences(make, values, dtype, device):
    """``α_μ C_μ + α_Σ C_Σ`` with the reported weights, which are its gradient; it moves the policy alone."""
    region, kl = make().to(device, dtype), divergences(values, dtype, device)
    terms = region(*kl)
    alphas = [terms.alpha_mean, terms.alpha_cov]
    assert all(alpha >= 0.0 for alpha in alphas)
    torch.testing.assert_close(terms.penalty, alphas[0] * kl[0] + alphas[1] * kl[1])
    torch.testing.assert_close(gradients(terms.penalty, kl), alphas)
    assert all(not g.any() for g in gradients(terms.penalty, region.parameters()))


@every_region
@pytest.mark.parametrize("values", DIVERGENCES)
def test_the_dual_loss_moves_the_multipliers_alone(make, values):
    region, kl = make(), divergences(values)
    dual_loss = region(*kl).dual_loss
    assert all(not g.any() for g in gradients(dual_loss, kl))
    parameters = list(region.parameters())
    assert dual_loss.requires_grad == bool(parameters)
    assert parameters or dual_loss == 0.0
    assert all(g.all() for g in gradients(dual_loss, parameters))


@every_region
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_terms_are_scalars_of_the_divergences_dtype(make, dtype, device):
    terms = make().to(device, dtype)(*divergences((0.1, 0.2), dtype, device))
    for name, term in terms._asdict().items():
        assert term.shape == (), name
        assert term.device.type == device, name
        assert term.dtype == (torch.bool if name == "capped" else dtype), name
    assert not any(x.requires_grad for x in (terms.alpha_mean, terms.alpha_cov, terms.capped))


@every_region
@pytest.mark.parametrize(("values", "sign"), [((100.0, 100.0), 1), ((0.0, 0.0), -1)])
def test_multipliers_do_not_fall_while_violated_nor_rise_while_slack(make, values, sign):
    region, kl = make(), divergences(values)
    before = region(*kl)
    if list(region.parameters()):
        optimizer = torch.optim.SGD(region.parameters(), 0.1)
        before.dual_loss.backward()
        optimizer.step()
    after = region(*kl)
    assert sign * (after.alpha_mean - before.alpha_mean) >= 0.0
    assert sign * (after.alpha_cov - before.alpha_cov) >= 0.0


@every_region
def test_state_and_copies_give_the_same_terms(make):
    region, kl = make(), divergences((0.3, 0.2))
    with torch.no_grad():
        for p in region.parameters():
            p.add_(0.25)
    loaded = make()
    loaded.load_state_dict(region.state_dict())
    for other in (loaded, copy.deepcopy(region)):
        torch.testing.assert_close(other(*kl), region(*kl), rtol=0, atol=0)
    with torch.no_grad():
        for p in loaded.parameters():
            p.sub_(0.25)
    expected = make()(*kl).alpha_mean  # the region itself did not follow
    torch.testing.assert_close(loaded(*kl).alpha_mean, expected)
    assert region(*kl).alpha_mean >= expected


@every_region
def test_no_host_copy_and_no_wait(make):
    region, kl = make(), divergences((0.3, 0.2))
    with NoHostCopies():
        terms = region(*kl)
        total = terms.penalty + terms.dual_loss
        if total.requires_grad:
            total.backward()


@every_region
def test_an_m_step_inside_it_raises_the_likelihood(make):
    """30 steps of Adam; what restricts ends nearer to the old policy than no restriction does."""

    def fitted(region):
        torch.manual_seed(0)
        policy = gaussian_policy(3, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
        loss = MStepLoss(policy, region)
        HardUpdate(loss)
        particles = {"action": 0.5 * torch.randn(16, 8, 2), "weight": torch.randn(16, 8).softmax(-1)}
        batch = TensorDict(observation=torch.randn(16, 3), particles=particles, batch_size=16)
        optimizer, prepared = torch.optim.Adam(loss.parameters(), 0.01), loss.prepare(batch)
        first = loss(prepared)["log_likelihood"]
        for _ in range(30):
            out = loss(prepared)
            optimizer.zero_grad()
            (out["loss_policy"] + out["loss_trust_region"]).backward()
            optimizer.step()
        assert all(value.isfinite() for value in out.values())
        assert out["log_likelihood"] > first
        return out["kl_mean"] + out["kl_cov"]

    assert fitted(make()) <= fitted(NoTrustRegion())
