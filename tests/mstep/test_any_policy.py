"""The M-step of any policy: beside the Gaussian one, beside closed forms, and from samples."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torchrl.modules import Actor, NormalParamExtractor, OneHotCategorical, ProbabilisticActor, TanhNormal

from safe_components.critics import Copy
from safe_components.estep import EStepProjector, ParticleSampler
from safe_components.mstep import (
    HardTrustRegion,
    MStepLoss,
    NoTrustRegion,
    SoftTrustRegion,
    WeightedLikelihoodLoss,
    mstep_loss,
)
from safe_components.policies import GaussianNet, deterministic_policy, gaussian_policy

STATES, PARTICLES = 6, 16


def general_loss(policy, region, **options):
    """The loss, with an updater of the old policy that TorchRL asks for."""
    loss = WeightedLikelihoodLoss(policy, region, **options)
    return loss, Copy(loss)


def mixture(logits, loc, scale):
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1))


class MixtureHead(nn.Linear):
    """Two Gaussians of two actions."""

    def __init__(self):
        super().__init__(3, 10)

    def forward(self, observation):
        out = super().forward(observation)
        loc, raw = out[..., 2:6].unflatten(-1, (2, 2)), out[..., 6:].unflatten(-1, (2, 2))
        return out[..., :2], loc, nn.functional.softplus(raw)


def actor(net, names, distribution):
    module = TensorDictModule(net, ["observation"], names)
    return ProbabilisticActor(module, in_keys=names, distribution_class=distribution)


def make(name):
    torch.manual_seed(0)
    if name == "gaussian":
        policy = gaussian_policy(3, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
    elif name == "tanh":
        net = nn.Sequential(nn.Linear(3, 4), NormalParamExtractor())
        policy = actor(net, ["loc", "scale"], TanhNormal)
    elif name == "categorical":
        policy = actor(nn.Linear(3, 4), ["logits"], Categorical)
    elif name == "one-hot":
        policy = actor(nn.Linear(3, 4), ["logits"], OneHotCategorical)
    else:
        policy = actor(MixtureHead(), ["logits", "loc", "scale"], mixture)
    return policy.double()


def batch_of(policy):
    """States with particles of the policy, and weights that prefer some of them."""
    states = TensorDict(observation=torch.randn(STATES, 3, dtype=torch.float64), batch_size=STATES)
    with torch.no_grad():
        action = policy.get_dist(states).sample((PARTICLES,)).movedim(0, 1)
    weight = torch.randn(STATES, PARTICLES, dtype=torch.float64).softmax(-1)
    return states.set("particles", TensorDict(action=action, weight=weight, batch_size=STATES))


def moved(policy, size=0.1):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def test_without_a_trust_region_it_is_the_gaussian_loss():
    policy = make("gaussian")
    batch = batch_of(policy)
    general, _ = general_loss(policy, NoTrustRegion())
    gaussian = MStepLoss(policy, NoTrustRegion(), likelihood="joint")
    Copy(gaussian)
    moved(policy)
    values, gradients = [], []
    for loss in (general, gaussian):
        policy.zero_grad()
        out = loss(batch)
        out["loss_policy"].backward()
        values.append(out["loss_policy"])
        gradients.append([parameter.grad.clone() for parameter in loss.policy_params.parameters()])
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_a_divergence_of_the_mean_alone_is_that_of_the_gaussian_loss():
    """With equal covariances, KL(π_old ‖ π_θ) and C_μ are the same."""
    policy = make("gaussian")
    batch = batch_of(policy)
    general, _ = general_loss(policy, SoftTrustRegion(3.0, 5.0))
    gaussian = MStepLoss(policy, SoftTrustRegion(3.0, 5.0), likelihood="joint")
    Copy(gaussian)
    with torch.no_grad():
        list(policy.parameters())[-1][:2] += 0.05  # the bias of the mean
    out, expected = general(batch), gaussian(batch)
    assert expected["kl_mean"] > 1e-3
    assert expected["kl_cov"].abs() < 1e-12
    torch.testing.assert_close(out["kl"], expected["kl_mean"], rtol=1e-9, atol=0)
    torch.testing.assert_close(out["loss_policy"], expected["loss_policy"], rtol=1e-9, atol=0)


def test_a_categorical_divergence_is_the_sum_over_the_actions():
    for name in ("categorical", "one-hot"):
        policy = make(name)
        batch = batch_of(policy)
        loss, _ = general_loss(policy, SoftTrustRegion(1.0, 1.0))
        old = policy.get_dist(batch).logits.log_softmax(-1).detach()
        moved(policy)
        new = policy.get_dist(batch).logits.log_softmax(-1)
        out = loss(batch)
        expected = (old.exp() * (old - new)).sum(-1).mean()
        torch.testing.assert_close(out["kl"], expected.detach(), rtol=1e-9, atol=0)
        action = batch["particles", "action"]
        index = action.argmax(-1) if name == "one-hot" else action
        likelihood = (batch["particles", "weight"] * new.gather(-1, index)).sum(-1).mean()
        torch.testing.assert_close(out["log_likelihood"], likelihood.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(out["loss_policy"], expected - likelihood, rtol=1e-9, atol=0)


def test_a_squashed_gaussian_has_the_divergence_of_the_gaussian_behind_it():
    policy = make("tanh")
    batch = batch_of(policy)
    loss, _ = general_loss(policy, NoTrustRegion())

    def behind():
        out = policy.get_dist_params(batch.select("observation"))
        return MultivariateNormal(out["loc"].detach(), torch.diag_embed(out["scale"].detach().square()))

    old = behind()
    moved(policy)
    expected = torch.distributions.kl_divergence(old, behind()).mean()
    # Many particles, in case the divergence is estimated from them.
    torch.manual_seed(1)
    torch.testing.assert_close(loss(batch)["kl"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_squashed_gaussian_is_fitted_by_the_gaussian_loss_of_its_values(covariance):
    torch.manual_seed(0)
    options = {"covariance": covariance, "hidden_sizes": (8,), "squash": True}
    policy = gaussian_policy(3, [-1.0, 0.0], [1.0, 4.0], **options).double()
    value = torch.randn(STATES, PARTICLES, 2, dtype=torch.float64)
    action = torch.tensor([0.0, 2.0]) + torch.tensor([1.0, 2.0]) * value.tanh()
    weight = torch.rand(STATES, PARTICLES, dtype=torch.float64)
    particles = TensorDict(action=action, latent=value, weight=weight / weight.sum(-1, keepdim=True))
    states = TensorDict(observation=torch.randn(STATES, 3, dtype=torch.float64), batch_size=STATES)
    # Independent of the loss: maximum likelihood of the actions by torch.distributions.
    outputs = policy.get_dist_params(states.copy())
    normal = MultivariateNormal(outputs["loc"], scale_tril=outputs["scale_tril"])
    center, half = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, 2.0], [1.0, 2.0]))
    dist = TransformedDistribution(normal, [TanhTransform(), AffineTransform(center, half)])
    log_prob = dist.log_prob(action.movedim(1, 0)).movedim(0, 1)
    likelihood = (particles["weight"] * log_prob).sum(-1).mean()
    expected = torch.autograd.grad(likelihood, list(policy.parameters()))

    batch = states.copy().set("particles", particles)
    loss = MStepLoss(policy, NoTrustRegion(), likelihood="joint")
    updater = Copy(loss)
    ours = torch.autograd.grad(-loss(batch)["loss_policy"], list(policy.parameters()))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)  # the reference inverts tanh
    del updater
    particles.del_("latent")
    with pytest.raises(KeyError, match="latent"):
        loss(states.copy().set("particles", particles))


@pytest.mark.parametrize("name", ["gaussian", "tanh", "mixture"])
def test_the_sampled_divergence_and_its_gradient_are_unbiased(name):
    policy = make(name)
    loss, _ = general_loss(policy, SoftTrustRegion(1.0, 1.0), sampled_kl=True)
    moved(policy, 0.05)
    torch.manual_seed(2)
    states = TensorDict(observation=torch.randn(1, 3, dtype=torch.float64), batch_size=1)
    count = 200_000
    with torch.no_grad(), loss.target_policy_params.to_module(loss.policy):
        old = loss.policy.get_dist(states)
        action = old.sample((count,)).movedim(0, 1)
        old_log_prob = old.log_prob(action.movedim(1, 0)).movedim(0, 1)
    weight = torch.zeros(1, count, dtype=torch.float64)
    particles = TensorDict(action=action, weight=weight, batch_size=1)
    out = loss(states.clone().set("particles", particles))
    out["loss_policy"].backward()
    found = torch.cat([p.grad.flatten() for p in loss.policy_params.parameters()])
    loss.zero_grad()
    log_prob = policy.get_dist(states).log_prob(action.movedim(1, 0)).movedim(0, 1)
    plain = (old_log_prob - log_prob).mean()  # the other unbiased estimate
    plain.backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    # The plain estimate's error is a standard deviation of about sqrt(2 KL) over sqrt(count).
    error = 5 * (2 * out["kl"] / count).sqrt()
    torch.testing.assert_close(out["kl"], plain.detach(), rtol=0, atol=float(error))
    assert out["kl"] > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()) + 5e-3)


@pytest.mark.parametrize("name", ["tanh", "mixture", "one-hot"])
def test_particles_e_step_and_m_step_of_any_policy_raise_the_value(name):
    """Actions near a target are worth more; ten improvements make the policy choose them."""
    policy = make(name)
    size = 4 if name == "one-hot" else 2
    target = torch.full((size,), 0.4, dtype=torch.float64)
    if name == "one-hot":
        target = torch.eye(size, dtype=torch.float64)[1]

    def critic(observation, action):
        return -(action - target).square().sum(-1, keepdim=True).unsqueeze(0)

    loss, reference = general_loss(policy, HardTrustRegion(0.05, 0.05).double())
    sampler = ParticleSampler(policy, critic, 32)
    projector = EStepProjector(epsilon=0.1, cost_limits=[])
    optim = torch.optim.Adam([*loss.policy_params.parameters(), *loss.trust_region.parameters()], lr=0.02)
    torch.manual_seed(3)
    states = TensorDict(observation=torch.randn(64, 3, dtype=torch.float64), batch_size=64)
    values = []
    for _ in range(30):
        batch = projector(sampler(states.clone()))
        assert batch["particles", "action"].shape == (64, 32, size)
        values.append(batch["particles", "q_reward"].mean().item())
        for _ in range(5):
            out = loss(batch)
            optim.zero_grad()
            (out["loss_policy"] + out["loss_trust_region"]).backward()
            optim.step()
        assert out["kl"] < 0.2
        reference.step()
    assert values[-1] > 0.6 * values[0]  # both are below zero


@pytest.mark.parametrize("name", ["gaussian", "tanh", "mixture", "one-hot"])
def test_prepared_particles_give_the_losses_of_the_batch_and_keep_the_old_policy(name):
    policy = make(name)
    batch = batch_of(policy)
    loss, reference = general_loss(policy, SoftTrustRegion(1.0, 1.0))
    prepared = loss.prepare(batch)
    assert loss(prepared)["kl"].abs() < 1e-12
    moved(policy)
    expected = loss(batch)
    reference.step()  # what was prepared does not follow
    for key, value in loss(prepared).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)
    assert loss(batch)["kl"].abs() < 1e-12


@pytest.mark.parametrize("name", ["tanh", "mixture"])
def test_an_entropy_without_closed_form_is_estimated_from_the_particles(name):
    policy = make(name)
    loss, _ = general_loss(policy, NoTrustRegion())
    states = TensorDict(observation=torch.randn(1, 3, dtype=torch.float64), batch_size=1)
    count = 100_000
    torch.manual_seed(4)
    with torch.no_grad():
        action = policy.get_dist(states).sample((count,)).movedim(0, 1)
        weight = torch.full((1, count), 1 / count, dtype=torch.float64)
        batch = states.clone().set("particles", TensorDict(action=action, weight=weight, batch_size=1))
        moved(policy, 0.05)  # the entropy is that of the new policy, the particles are of the old one
        new = policy.get_dist(states)
        with pytest.raises(NotImplementedError):
            new.entropy()
        log_prob = new.log_prob(new.sample((count,)))
    # Six standard errors of both means.
    error = 12 * float(log_prob.std()) / count**0.5
    torch.testing.assert_close(loss(batch)["entropy"], -log_prob.mean(), rtol=0, atol=error)


def squashed_by_the_name_of_a_gaussian():
    net = GaussianNet(3, [-1.0], [1.0], hidden_sizes=(8,))
    return actor(net, ["loc", "scale_tril"], lambda loc, scale_tril: TanhNormal(loc, scale_tril[..., 0]))


def test_each_policy_gets_the_m_step_that_fits_it():
    assert type(mstep_loss(make("gaussian"), NoTrustRegion())) is MStepLoss
    for policy in (make("tanh"), make("mixture"), squashed_by_the_name_of_a_gaussian()):
        assert type(mstep_loss(policy, NoTrustRegion())) is WeightedLikelihoodLoss
    gaussian = MStepLoss(policy := make("tanh"), NoTrustRegion())
    Copy(gaussian)
    with pytest.raises(KeyError, match=r"writes \['loc', 'scale', 'action'\]; WeightedLikelihoodLoss takes"):
        gaussian(batch_of(policy))
    with pytest.raises(TypeError, match=r"but a TensorDictModule that writes \['action'\] has none: it must"):
        mstep_loss(deterministic_policy(3, [-1.0], [1.0]), NoTrustRegion())


def test_what_cannot_be_fitted_is_refused_by_name():
    actor = Actor(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"must have a distribution \(get_dist\), got a Actor"):
        WeightedLikelihoodLoss(actor, NoTrustRegion())
    with pytest.raises(TypeError, match="there is nothing to draw particles from"):
        ParticleSampler(actor, lambda o, a: a[None, ..., :1], 4)
    policy = make("tanh")
    with pytest.raises(ValueError, match="antithetic particles need a Gaussian"):
        ParticleSampler(policy, lambda o, a: a[None, ..., :1], 4, antithetic=True)
    batch = batch_of(policy)
    batch["particles", "weight"] = batch["particles", "weight"][:, :3]
    with pytest.raises(ValueError, match=r"weight \[B, K\] are needed, got \(6, 16, 2\) and \(6, 3\)"):
        general_loss(policy, NoTrustRegion())[0](batch)


def test_categorical_actions_may_have_a_last_dimension_of_one():
    policy = make("categorical")
    batch = batch_of(policy)
    loss, _ = general_loss(policy, NoTrustRegion())
    expected = loss(batch)["log_likelihood"]
    batch["particles", "action"] = batch["particles", "action"].unsqueeze(-1)
    torch.testing.assert_close(loss(batch)["log_likelihood"], expected)


def test_the_entropy_of_the_gaussian_loss_is_that_of_its_distribution():
    policy = make("gaussian")
    batch = batch_of(policy)
    loss = MStepLoss(policy, NoTrustRegion())
    Copy(loss)
    expected = policy.get_dist(batch).entropy().mean().detach()
    torch.testing.assert_close(loss(batch)["entropy"], expected, rtol=1e-12, atol=0)
