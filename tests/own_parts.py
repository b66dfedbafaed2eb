"""Parts as a user writes them, for options that take an import path."""

import gymnasium
import numpy as np
import torch
from cost_envs import Corridor
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torchrl.modules import ProbabilisticActor

from safe_components.critics import CriticPair, QEnsemble
from safe_components.estep import NewtonDualSolver
from safe_components.policies import deterministic_policy, gaussian_policy, policy_builder
from safe_components.policies.mlp import mlp
from safe_components.studies import Variant


class Head(nn.Module):
    """Logits, means and standard deviations of two Gaussians."""

    def __init__(self, observation_dim, action_low, action_high, hidden_sizes):
        super().__init__()
        self.net = mlp(observation_dim, 2 + 4 * len(action_low), hidden_sizes, nn.Tanh)
        self.register_buffer("half_range", (torch.as_tensor(action_high) - torch.as_tensor(action_low)) / 2)
        self.register_buffer("center", torch.as_tensor(action_low) + self.half_range)

    def forward(self, observation):
        logits, loc, raw = self.net(observation).tensor_split((2, 2 + 2 * len(self.half_range)), -1)
        loc, raw = loc.unflatten(-1, (2, -1)), raw.unflatten(-1, (2, -1))
        return (
            logits,
            self.center + self.half_range * loc.tanh(),
            self.half_range * (0.1 + nn.functional.softplus(raw)),
        )


def _mixture(logits, loc, scale):
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1))


@policy_builder
def mixture_policy(observation_dim, action_low, action_high, hidden_sizes):
    names = ["logits", "loc", "scale"]
    head = Head(observation_dim, action_low, action_high, hidden_sizes)
    module = TensorDictModule(head, ["observation"], names)
    return ProbabilisticActor(module, in_keys=names, distribution_class=_mixture)


def without_sizes(observation_dim, action_low, action_high):
    return gaussian_policy(observation_dim, action_low, action_high)


def without_distribution(observation_dim, action_low, action_high, hidden_sizes):
    return deterministic_policy(observation_dim, action_low, action_high, hidden_sizes=hidden_sizes)


def of_another_entry(observation_dim, action_low, action_high, hidden_sizes):
    sizes = {"hidden_sizes": hidden_sizes, "observation_key": "pixels"}
    return gaussian_policy(observation_dim, action_low, action_high, **sizes)


def of_other_actions(observation_dim, action_low, action_high, hidden_sizes):
    return gaussian_policy(observation_dim, action_low[:1], action_high[:1], hidden_sizes=hidden_sizes)


def of_no_numbers(observation_dim, action_low, action_high, hidden_sizes):
    policy = gaussian_policy(observation_dim, action_low, action_high, hidden_sizes=hidden_sizes)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(torch.nan)
    return policy


class Pushes(Corridor):
    """A push back or forth, from 3, of one of three strengths: six actions."""

    action_space = gymnasium.spaces.MultiDiscrete([2, 3], start=[3, 0])

    def step(self, action):
        assert action.shape == (2,)
        assert action in self.action_space
        return super().step(np.array([(-1, 1)[action[0] - 3] * 0.2 * action[1]], np.float32))


gymnasium.register("Pushes-v0", entry_point=Pushes, max_episode_steps=50)


class Counting(NewtonDualSolver):
    """Newton's method that counts its calls."""

    calls = 0

    def solve(self, *arguments, **keywords):
        type(self).calls += 1
        return super().solve(*arguments, **keywords)


def plain_solver(lam_max):
    """A function of the E-step's problem, which is no DualSolver."""
    newton = NewtonDualSolver(lam_max=lam_max)
    return lambda q_reward, q_cost, epsilon, cost_limits, log_prior=None: newton(
        q_reward, q_cost, epsilon, cost_limits, log_prior
    )


def two_critics(observation_dim, action_dim, *, num_reward_members, num_cost_members, num_costs, **options):
    options.pop("scoring_dtype")
    sizes = (observation_dim, action_dim)
    reward = QEnsemble(*sizes, num_members=num_reward_members, **options)
    return CriticPair(
        reward, QEnsemble(*sizes, num_members=num_cost_members, num_outputs=num_costs, **options)
    )


def critics_without_costs(observation_dim, action_dim, *, num_reward_members, **options):
    reward = QEnsemble(observation_dim, action_dim, num_members=num_reward_members)
    return CriticPair(reward, reward)


FAST = Variant("cvpo", "two gradient steps at twice the step size", {"policy.lr": 0.002})
VARIANTS = {"own-slow": Variant("cvpo", "a tenth", {"policy.lr": 1e-4}), "own-fast": FAST}
