"""Particles: their distribution, their scores, parameters from elsewhere, and the keys they write."""

import copy
from functools import partial

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import MultivariateNormal
from torchrl.modules import ProbabilisticActor

from safe_components.estep import EStepProjector, ParticleSampler
from safe_components.policies import gaussian_policy, tanh_gaussian_policy


class Head(nn.Module):
    """A Gaussian head on two observations: two actions, full covariance that depends on the state."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 5)

    def forward(self, observation):
        out = self.linear(observation)
        loc, log_diagonal, below = out[..., :2], out[..., 2:4], out[..., 4]
        tril = torch.diag_embed(log_diagonal.exp())
        tril[..., 1, 0] = below
        return loc, tril


class Critic(nn.Module):
    """Members of reward and costs, quadratic in the action."""

    def __init__(self, costs=3):
        super().__init__()
        self.reward_center = nn.Parameter(torch.randn(2, 1, 2))
        self.cost_center = nn.Parameter(torch.randn(4, costs, 2))
        self.calls = 0

    def forward(self, observation, action):
        self.calls += 1

        def scores(center):
            distance = (action[None, :, :, None] - center[:, None, None]).square().sum(-1)
            return observation.sum(-1)[:, None, None] - distance

        return scores(self.reward_center), scores(self.cost_center)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    policy = TensorDictModule(Head(), in_keys=["observation"], out_keys=["loc", "scale_tril"])
    return policy, Critic()


def states(batch=4):
    return TensorDict(observation=torch.randn(batch, 2), batch_size=[batch])


@pytest.mark.parametrize("device", DEVICES)
def test_keys_shapes_and_dtypes(parts, device):
    policy, critic = (part.to(device) for part in parts)
    sampler = ParticleSampler(policy, critic, num_particles=8)
    data = states().to(device)
    assert sampler(data) is data
    shapes = {key: tuple(value.shape) for key, value in data["particles"].items()}
    assert shapes == {
        "action": (4, 8, 2),
        "q_reward": (4, 8),
        "q_cost": (4, 8, 3),
        "loc": (4, 2),
        "scale_tril": (4, 2, 2),
    }
    assert sorted(sampler.out_keys) == sorted(("particles", key) for key in shapes)
    for key in shapes:
        assert data["particles", key].dtype == torch.float32
        assert data["particles", key].device.type == device
        assert not data["particles", key].requires_grad
    # The particles' reference is kept apart from the policy that collects.
    assert set(data.keys()) == {"observation", "particles"}


def test_scores_are_the_critics_reduced(parts):
    policy, critic = parts
    for how, reduce in (("min", "amin"), ("mean", "mean"), ("max", "amax")):
        sampler = ParticleSampler(policy, critic, 8, reward_aggregate=how, cost_aggregate=how)
        data = sampler(states())
        rewards, costs = critic(data["observation"], data["particles", "action"])
        torch.testing.assert_close(data["particles", "q_reward"], getattr(rewards, reduce)(0).squeeze(-1))
        torch.testing.assert_close(data["particles", "q_cost"], getattr(costs, reduce)(0))
    sampler = ParticleSampler(policy, critic, 8, cost_aggregate="conservative", std_coef=2.0)
    data = sampler(states())
    _, costs = critic(data["observation"], data["particles", "action"])
    torch.testing.assert_close(data["particles", "q_cost"], costs.mean(0) + 2.0 * costs.std(0, correction=0))


@pytest.mark.parametrize("coef", [0.3, torch.tensor(0.3), lambda: torch.tensor(0.3)])
@pytest.mark.parametrize("squashed", [None, tanh_gaussian_policy, partial(gaussian_policy, squash=True)])
def test_entropy_is_added_to_the_reward_alone(parts, squashed, coef):
    policy, critic = parts
    if squashed:
        policy = squashed(2, [-1.0, -2.0], [1.0, 2.0], hidden_sizes=(8,), init_std=1.0)
    reference = copy.deepcopy(policy)  # another policy than the present one
    with torch.no_grad():
        [p.add_(0.1) for p in reference.parameters()]
    kept = TensorDict.from_module(reference).data
    data, same = states(), torch.get_rng_state()
    plain = ParticleSampler(policy, critic, 8, policy_params=kept)(data.clone())
    torch.set_rng_state(same)
    soft = ParticleSampler(policy, critic, 8, policy_params=kept, entropy_coef=coef)(data.clone())
    with kept.to_module(policy):
        if squashed:
            dist = policy.get_dist(data)
        else:
            loc, tril = policy.module(data["observation"])
            dist = MultivariateNormal(loc, scale_tril=tril)
        log_prob = torch.stack([dist.log_prob(a) for a in soft["particles", "action"].unbind(1)], 1)
    assert log_prob.std() > 0.1
    for key in ("action", "q_cost"):
        assert torch.equal(soft["particles", key], plain["particles", key])
    expected = plain["particles", "q_reward"] - 0.3 * log_prob
    torch.testing.assert_close(soft["particles", "q_reward"], expected.detach())


def test_a_squashed_gaussian_scores_the_squashed_values_and_keeps_the_others(parts):
    torch.manual_seed(0)
    policy = gaussian_policy(2, [-1.0, 0.0], [1.0, 4.0], hidden_sizes=(8,), squash=True, init_std=3.0)
    batch = ParticleSampler(policy, parts[1], 64)(states())
    latent, action = batch["particles", "latent"], batch["particles", "action"]
    torch.testing.assert_close(action, torch.tensor([0.0, 2.0]) + torch.tensor([1.0, 2.0]) * latent.tanh())
    white = latent - batch["particles", "loc"].unsqueeze(1)
    white = torch.linalg.solve_triangular(batch["particles", "scale_tril"], white.mT, upper=False)
    # Errors of a mean and of a variance from n draws: 1 / sqrt(n) and sqrt(2 / n); five of them.
    assert white.mean().abs() < 5.0 / white.numel() ** 0.5
    assert (white.var() - 1.0).abs() < 5.0 * (2.0 / white.numel()) ** 0.5
    rewards, _ = parts[1](batch["observation"], action)
    torch.testing.assert_close(batch["particles", "q_reward"], rewards.amin(0).squeeze(-1))


def test_reward_and_costs_are_scored_in_one_call(parts):
    sampler = ParticleSampler(*parts, 8)
    sampler(states())
    assert parts[1].calls == 1
    assert not sampler.synchronizes


def test_the_noise_is_the_only_draw(parts):
    torch.manual_seed(7)
    data = ParticleSampler(*parts, 8)(states())
    torch.manual_seed(7)
    observation = torch.randn(4, 2)
    loc, tril = parts[0].module(observation)
    torch.testing.assert_close(data["particles", "action"], loc.unsqueeze(1) + torch.randn(4, 8, 2) @ tril.mT)


@pytest.mark.parametrize("antithetic", [False, True])
def test_actions_follow_the_reference_distribution(parts, antithetic):
    policy, critic = parts
    number = 40_000
    data = ParticleSampler(policy, critic, number, antithetic=antithetic)(states())
    loc, tril = data["particles", "loc"], data["particles", "scale_tril"]
    expected_loc, expected_tril = policy.module(data["observation"])
    torch.testing.assert_close(loc, expected_loc)
    torch.testing.assert_close(tril, expected_tril)
    centered = (data["particles", "action"] - loc.unsqueeze(1)).double()
    white = torch.linalg.solve_triangular(tril.double().unsqueeze(1), centered.unsqueeze(-1), upper=False)
    white = white.squeeze(-1)
    # Five standard errors of a mean (0.005) and of a variance (0.007) of 40,000 draws; antithetic
    # draws have half as many independent squares.
    covariance = white.mT @ white / number
    assert white.mean(1).abs().max() < (1e-6 if antithetic else 0.025)
    assert (covariance - torch.eye(2).double()).abs().max() < 0.05


def test_a_probabilistic_actor_gives_its_parameters(parts):
    policy, critic = parts
    actor = ProbabilisticActor(
        policy,
        in_keys=["loc", "scale_tril"],
        distribution_class=MultivariateNormal,
        return_log_prob=False,
    )
    data = states()
    torch.manual_seed(1)
    a = ParticleSampler(actor, critic, 8)(data.clone())
    torch.manual_seed(1)
    b = ParticleSampler(policy, critic, 8)(data.clone())
    assert (a["particles"] == b["particles"]).all()


def test_parameters_are_swapped_in_and_back(parts):
    policy, critic = parts
    data = states()

    def zeroed(module):
        return TensorDictParams(TensorDict.from_module(module).data.clone().zero_(), no_convert=True)

    sampler = ParticleSampler(policy, critic, 8, policy_params=zeroed(policy), critic_params=zeroed(critic))
    before = [p.clone() for part in parts for p in part.parameters()]
    sampler(data)
    after = [p for part in parts for p in part.parameters()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    action, observation = data["particles", "action"], data["observation"]
    torch.testing.assert_close(data["particles", "scale_tril"], torch.eye(2).expand(4, 2, 2))
    expected = -action.square().sum(-1) + observation.sum(-1, keepdim=True)
    torch.testing.assert_close(data["particles", "q_reward"], expected)
    torch.testing.assert_close(data["particles", "q_cost"][..., 2], expected)


def test_swapped_parameters_are_read_at_each_call(parts):
    policy, critic = parts
    params = TensorDictParams(TensorDict.from_module(policy).data.clone(), no_convert=True)
    sampler = ParticleSampler(policy, critic, 8, policy_params=params)
    first = sampler(states())["particles", "loc"]
    assert first.abs().max() > 0
    params.data.zero_()
    assert sampler(states())["particles", "loc"].abs().max() == 0


def test_the_networks_stay_with_their_owners(parts):
    sampler = ParticleSampler(*parts, 8)
    assert list(sampler.parameters()) == []
    assert sampler.state_dict() == {}


@pytest.mark.parametrize("costs", ["single tensor", "no costs"])
def test_no_constraint_end_to_end(parts, costs):
    policy, critic = parts[0], Critic(costs=0)
    of_reward = critic if costs == "no costs" else lambda observation, action: critic(observation, action)[0]
    data = EStepProjector(0.1, [])(ParticleSampler(policy, of_reward, 8)(states()))
    assert data["particles", "q_cost"].shape == (4, 8, 0)
    weight, q = data["particles", "weight"], data["particles", "q_reward"]
    assert (weight * q).sum(1).mean() > q.mean()


def test_bad_input_is_named(parts):
    policy, critic = parts
    with pytest.raises(ValueError, match="num_particles=1"):
        ParticleSampler(policy, critic, 1)
    with pytest.raises(ValueError, match="num_particles=7 must be even"):
        ParticleSampler(policy, critic, 7, antithetic=True)
    with pytest.raises(ValueError, match=r"reward as \[E, B, K, 1\].*\(4, 4, 8, 3\)"):
        ParticleSampler(policy, lambda o, a: critic(o, a)[1], 8)(states())
    with pytest.raises(ValueError, match=r"costs as \[E, B, K, m\].*\(4, 8\)"):
        ParticleSampler(policy, lambda o, a: (critic(o, a)[0], a.sum(-1)), 8)(states())


def test_an_empty_batch_is_named():
    policy = TensorDictModule(
        lambda o: (o, torch.eye(2).expand(*o.shape, 2)), ["observation"], ["loc", "scale_tril"]
    )
    sampler = ParticleSampler(policy, lambda o, a: a.sum(-1, keepdim=True).unsqueeze(0), 4)
    with pytest.raises(ValueError, match=r"observation of shape \(0,\) holds no state"):
        sampler(TensorDict(observation=torch.zeros(0, 2), batch_size=[0]))
