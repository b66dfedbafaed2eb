"""The loss of FOCOPS against the formula, with divergences and ratios by hand."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch.distributions import Normal
from torchrl.modules import IndependentNormal, ProbabilisticActor, TanhNormal

from safe_components.critics import Copy
from safe_components.lagrangian import FOCOPSLoss
from safe_components.policies import deterministic_policy


def actor(distribution=IndependentNormal):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), NormalParamExtractor())
    module = TensorDictModule(net, ["observation"], ["loc", "scale"])
    return ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=distribution)


def moved_loss(distribution, step=0.3, **options):
    """A loss whose policy has left the old policy, and a batch of the old policy's actions."""
    torch.manual_seed(0)
    policy = actor(distribution)
    loss = FOCOPSLoss(policy, **options)
    Copy(loss)
    batch = policy(TensorDict(observation=torch.randn(64, 2), batch_size=64)).detach()
    batch["advantage"] = torch.randn(64, 1)
    old = policy.get_dist(batch)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(step * torch.randn_like(parameter))
    return loss, batch, old


def test_the_loss_is_the_formula():
    loss, batch, old = moved_loss(IndependentNormal, temperature=0.7, max_kl=0.05, reduction="none")
    out = loss(batch)
    with torch.no_grad():
        new = loss.policy.get_dist(batch)
    action, advantage = batch["action"].squeeze(-1), batch["advantage"].squeeze(-1)
    mu, sigma = new.base_dist.loc[:, 0], new.base_dist.scale[:, 0]
    mu_old, sigma_old = old.base_dist.loc[:, 0].detach(), old.base_dist.scale[:, 0].detach()
    kl = (sigma_old / sigma).log() + (sigma**2 + (mu - mu_old) ** 2) / (2 * sigma_old**2) - 0.5
    ratio = (
        sigma_old
        / sigma
        * torch.exp(((action - mu_old) / sigma_old) ** 2 / 2 - ((action - mu) / sigma) ** 2 / 2)
    )
    kept = kl <= 0.05
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(out["loss_policy"].detach(), kept * (kl - ratio * advantage / 0.7))
    torch.testing.assert_close(out["kl"], kl.mean())
    torch.testing.assert_close(out["kept_fraction"], kept.float().mean())


def test_at_the_old_policy_it_is_the_policy_gradient():
    loss, batch, _ = moved_loss(IndependentNormal, step=0.0, temperature=2.0)
    loss(batch)["loss_policy"].backward()
    gradients = [parameter.grad.clone() for parameter in loss.parameters()]
    loss.zero_grad()
    log_prob = loss.policy.get_dist(batch).log_prob(batch["action"])
    (-log_prob * batch["advantage"].squeeze(-1) / 2.0).mean().backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in loss.policy.parameters()])


def test_states_outside_the_bound_do_not_move_the_policy():
    loss, batch, _ = moved_loss(IndependentNormal, step=3.0, max_kl=1e-6)
    out = loss(batch)
    out["loss_policy"].backward()
    assert out["kept_fraction"] == 0
    assert all((parameter.grad == 0).all() for parameter in loss.parameters())


def test_a_divergence_without_a_closed_form_is_estimated_without_bias():
    torch.manual_seed(0)
    policy = actor(TanhNormal)
    loss = FOCOPSLoss(policy, max_kl=100.0)
    Copy(loss)
    state = TensorDict(observation=torch.ones(100_000, 2), batch_size=100_000)
    batch = policy(state).detach()
    batch["advantage"] = torch.zeros(100_000, 1)
    before = batch["loc"][0], batch["scale"][0]
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.1)
        after = policy(state[:1].clone())
    # A squashing leaves the divergence of the Gaussians as it is.
    exact = torch.distributions.kl_divergence(
        Normal(after["loc"][0], after["scale"][0]), Normal(*before)
    ).item()
    assert loss(batch)["kl"].item() == pytest.approx(exact, rel=0.05)
    assert exact > 0.01


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FOCOPSLoss(actor(), temperature=0.0), "temperature=0.0 must be positive"),
        (lambda: FOCOPSLoss(actor(), max_kl=float("inf")), "max_kl=inf must be positive"),
        (lambda: FOCOPSLoss(deterministic_policy(2, [-1.0], [1.0])), "needs a policy with a distribution"),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_an_advantage_of_another_shape_is_named():
    loss, batch, _ = moved_loss(IndependentNormal)
    with pytest.raises(ValueError, match=r"advantage must have the shape \(64, 1\), got \(64,\)"):
        loss(batch.set("advantage", torch.zeros(64)))
