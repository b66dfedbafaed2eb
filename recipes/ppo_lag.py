"""PPO with Lagrangian multipliers (Ray et al. 2019; PID: Stooke et al. 2020, arXiv 2007.03964).

    python recipes/ppo_lag.py --env.id SafetyPointGoal1-v0 --cost-limit 25 --total-frames 2000000
    python recipes/ppo_lag.py --multiplier gradient
    python recipes/ppo_lag.py --resume runs/ppo_lag-...       # continue from the last checkpoint

    max_θ  mean min(r A, clip(r, 1 - ε, 1 + ε) A),    A = (A_r - λᵀ A_c) / (1 + Σ λ)

Here ``r`` is the ratio of the action's probability to its probability under the policy that collected it. The
advantages are generalized advantage estimates of the reward and of each cost. PPO is on-policy. The episodes
that end in a batch of frames move the multipliers. The batch then serves a few epochs of updates and is
dropped. Every metric is defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch.distributions import kl_divergence
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from safe_components import keys
from safe_components.training import CostControl, Learner, Loop, Run, Task, launch, options, require_memory

# Entries that the advantage estimation of the cost renames, with the prefix ``cost_``.
COST_KEYS = ("value", "advantage", "value_target", "done", "terminated")
# Entries that an update reads, in addition to the log-probabilities.
LEARNED_FROM = (keys.OBSERVATION, keys.ACTION, "advantage", "value_target", "cost_value_target")


@dataclasses.dataclass(frozen=True)
class ValuesConfig:
    """The value networks of the reward and the costs, and their optimizer."""

    hidden_sizes: options.Sizes = (128, 128)
    """widths of the hidden layers of both networks"""
    lr: options.StepSize = 1e-3
    """step size of Adam"""


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """The advantage estimates of the reward and the costs."""

    gamma: options.PositiveShare = 0.99
    """discount of the reward and the costs"""
    gae_lambda: options.Share = 0.95
    """weight λ of the estimate: 0 relies on the value network, 1 on the sampled returns"""


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """The updates after each batch of frames."""

    epochs: options.Repeats = 10
    """number of passes over the batch of frames"""
    batch_size: options.Count = 250
    """environment steps per update"""
    clip: options.PositiveShare = 0.2
    """ε, the largest change of the probability ratio that the objective still rewards"""
    kl_stop: options.NotNegative = 0.03
    """KL divergence from the policy that collected the batch, in nats, that ends the epochs"""
    entropy_coef: options.NotNegative = 0.0
    """bonus per nat of entropy, in standard deviations of the advantage"""
    max_grad_norm: options.Positive = 1.0
    """largest norm of a gradient; the policy and the value networks are clipped separately"""


@dataclasses.dataclass(frozen=True)
class Config(options.RecipeConfig):
    """Configuration of PPO-Lag. Each group holds the settings of one part."""

    recipe: ClassVar[str] = "ppo_lag"
    collect: options.CollectConfig = options.CollectConfig(frames_per_batch=5_000)
    policy: options.GaussianPolicyConfig = options.GaussianPolicyConfig(lr=3e-4, covariance="diagonal")
    values: ValuesConfig = ValuesConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    # The gains are larger than in off-policy recipes, where the multiplier moves more often.
    multiplier: options.Multiplier = options.PriceConfig()
    ppo: PPOConfig = PPOConfig()


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """Make a Gaussian policy whose mean stays inside the action bounds."""
    return config.policy.make(task.observation_dim, **task.bounds).to(task.device)


def make_value(config: Config, task: Task, outputs: int, out_key: str) -> TensorDictModule:
    """Make a network that estimates the discounted sums ``[..., outputs]`` from an observation."""
    sizes = {"num_cells": config.values.hidden_sizes, "activation_class": torch.nn.Tanh}
    network = MLP(task.observation_dim, outputs, **sizes)
    return ValueOperator(network, in_keys=[keys.OBSERVATION], out_keys=[out_key]).to(task.device)


@torch.no_grad()
def add_advantage(
    steps: TensorDictBase, reward_gae: GAE, cost_gae: GAE, lam: torch.Tensor, in_spreads: bool = False
) -> torch.Tensor:
    """Write ``advantage = (A_r - λᵀ A_c) / (1 + Σ λ)`` and the value networks' targets.

    Both estimates bootstrap after truncation but not after termination.

    Args:
        steps: steps ``[..., T]``, consecutive in the last dimension, which are changed in place.
        reward_gae: estimator that reads the reward and writes ``advantage`` and ``value_target``.
        cost_gae: estimator that reads the costs ``[..., T, m]``; its other keys are ``COST_KEYS`` with the
            prefix ``cost_``.
        lam: multipliers ``[m]``.
        in_spreads: whether they are prices: ``λ_i = θ_i std A_r / std A_c,i``.

    Returns:
        ``λ [m]``, reward per cost.
    """
    cost = steps[keys.COST]
    for name in ("done", "terminated"):  # GAE needs one flag per cost
        steps["next", f"cost_{name}"] = steps["next", name].expand_as(cost)
    cost_gae(reward_gae(steps))
    lam = lam.to(cost)
    if in_spreads and len(lam):
        spread = steps["cost_advantage"].flatten(0, -2).std(0)
        lam = torch.where(spread > 0, lam * steps["advantage"].std() / spread, 0.0)
    penalty = (steps["cost_advantage"] * lam).sum(-1, keepdim=True)
    steps["advantage"] = (steps["advantage"] - penalty) / (1 + lam.sum())
    return lam


def standardize(advantage: torch.Tensor) -> torch.Tensor:
    """Return ``(A - mean A) / std A`` over ``[N, 1]``, and 0 if all advantages are equal."""
    centered = advantage - advantage.mean()
    return centered / centered.square().mean().sqrt().clamp_min(torch.finfo(centered.dtype).tiny)


class PPOLag(Learner):
    """The parts of PPO-Lag, and one update of them; its ``state_dict`` is the checkpoint."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        self.settings, advantage = config.ppo, config.advantage
        self.policy = make_policy(config, task)
        self.reward_value = make_value(config, task, 1, "state_value")
        self.cost_value = make_value(config, task, task.num_costs, "cost_value")
        self.budget = config.budget.make()
        self.control = CostControl(config.multiplier, config, task, config.collect.frames_per_batch).to(
            task.device
        )
        discounts = {"gamma": advantage.gamma, "lmbda": advantage.gae_lambda, "device": task.device}
        self.reward_gae = GAE(value_network=self.reward_value, **discounts)
        self.cost_gae = GAE(value_network=self.cost_value, **discounts)
        self.cost_gae.set_keys(**{name: f"cost_{name}" for name in COST_KEYS}, reward="cost")
        self.loss = ClipPPOLoss(
            self.policy,
            self.reward_value,
            clip_epsilon=config.ppo.clip,
            entropy_bonus=True,
            entropy_coeff=config.ppo.entropy_coef,
            critic_coeff=1.0,
            loss_critic_type="l2",
        )
        self.policy_optim = torch.optim.Adam(self.policy.parameters(), lr=config.policy.lr)
        self.value_parameters = [*self.reward_value.parameters(), *self.cost_value.parameters()]
        self.value_optim = torch.optim.Adam(self.value_parameters, lr=config.values.lr)

    def epochs(self, steps: TensorDictBase) -> Iterator[tuple[TensorDictBase, ...]]:
        """Yield the batches of each pass over steps ``[N, T]``, until the policy has moved too far."""
        price, in_spreads = self.control(), self.control.in_spreads
        self.lam = add_advantage(steps, self.reward_gae, self.cost_gae, price, in_spreads)
        steps = steps.select(*LEARNED_FROM).reshape(-1)
        with torch.no_grad():
            before = self.policy.get_dist(steps)
        steps[self.loss.tensor_keys.sample_log_prob] = before.log_prob(steps[keys.ACTION])
        # The unit is the standard deviation, so step sizes do not depend on the scale of the reward.
        steps["advantage"] = standardize(steps["advantage"])
        for _ in range(self.settings.epochs):
            shuffled = steps[torch.randperm(len(steps), device=steps.device)]
            yield shuffled.split(self.settings.batch_size)
            with torch.no_grad():
                self.kl = kl_divergence(before, self.policy.get_dist(steps)).mean()
            if self.kl > self.settings.kl_stop:
                break

    def update(self, batch: TensorDictBase) -> dict[str, torch.Tensor]:
        """Take one step of the policy and one of the value networks."""
        out = self.loss(batch)
        error = self.cost_value(batch)["cost_value"] - batch["cost_value_target"]
        loss_cost = error.square().mean(0).sum()
        loss = out["loss_objective"] + out["loss_entropy"] + out["loss_critic"] + loss_cost
        self.policy_optim.zero_grad()
        self.value_optim.zero_grad()
        loss.backward()
        longest = self.settings.max_grad_norm
        policy_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), longest)
        torch.nn.utils.clip_grad_norm_(self.value_parameters, longest)
        self.policy_optim.step()
        self.value_optim.step()
        metrics = {"loss_policy": out["loss_objective"], "policy_gradient": policy_norm}
        metrics |= {"loss_value_reward": out["loss_critic"], "loss_value_cost": loss_cost}
        return metrics | {"clip_fraction": out["clip_fraction"], "entropy": out["entropy"]}

    def observe(self, steps: TensorDictBase, episode_costs: torch.Tensor, frames: int) -> None:
        """Move the limit and the multiplier between two batches of frames."""
        self.budget.observe(episode_costs, frames)
        self.control.observe(self.budget.cost_limit, steps, episode_costs)


def main(config: Config) -> PPOLag:
    """Train, and return the learner."""
    task = Task(config)
    require_memory(config, task)
    learner = PPOLag(config, task)
    with Run(config, learner=learner, policy=learner.policy, norm=task.norm) as run:
        loop = Loop(run, task, learner.policy, config.collect)
        if run.frames == 0:
            loop.warm_up()
        for steps in loop.collect():
            learner.observe(steps, loop.episode_costs, run.frames)
            for batches in learner.epochs(steps.to(task.device)):
                for batch in batches:
                    run.count_update()
                    loop.record(learner.update(batch))
            loop.record(learner.control.metrics() | {"lambda": learner.lam, "kl": learner.kl})
            loop.report(shown=("lambda", "kl"))
    return learner


if __name__ == "__main__":
    launch(main, Config)
