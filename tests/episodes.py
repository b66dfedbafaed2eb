"""Episodes with known actions, and sums over episodes computed step by step."""

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import RewardSum, TransformedEnv


def constant_policy(value):
    """A policy for PointCircle whose action is its bias, whatever the observation."""
    net = nn.Linear(4, 2)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, value)
    return TensorDictModule(net, in_keys=["observation"], out_keys=["action"])


def summed(env):
    """The environment with running sums of reward and cost, as the recipes use it."""
    sums = RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])
    return TransformedEnv(env, sums)


def check_sums(data):
    """Compare the running sums in a rollout ``[..., T]`` with those of its steps."""
    steps = data["next"]
    for key in ("reward", "cost"):
        total = torch.zeros_like(steps[key][..., 0, :])
        for t in range(data.shape[-1]):
            total = total + steps[key][..., t, :]
            torch.testing.assert_close(steps[f"episode_{key}"][..., t, :], total)
            total = total * ~steps["done"][..., t, :]
