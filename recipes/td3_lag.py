"""Twin delayed deterministic policy gradient with a Lagrangian multiplier (TD3-Lag), and DDPG-Lag.

    python recipes/td3_lag.py                                 # SafetyPointCircle1-v0, limit 25
    python recipes/td3_lag.py --multiplier gradient --env.id SafetyPointGoal1-v0 --seed 1
    python recipes/td3_lag.py --algorithm ddpg                # DDPG-Lag
    python recipes/td3_lag.py --resume runs/td3_lag-...       # continue from the last checkpoint

The algorithm is TD3 (Fujimoto et al. 2018, arXiv 1802.09477), but its actor maximizes the reward minus the
costs, each weighted by its multiplier. The multipliers follow the cost of the episodes just collected
(docs/lagrangian.md). DDPG (Lillicrap et al. 2016, arXiv 1509.02971) has one reward critic and moves the actor
at every update. Its targets take the actions of the target actor without noise. Every metric is defined in
docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule

from safe_components.critics import Polyak, TargetSmoothing
from safe_components.lagrangian import DeterministicLagLoss
from safe_components.policies import deterministic_policy, encoded_policy
from safe_components.training import (
    CostControl,
    Learner,
    Loop,
    Replay,
    Run,
    Task,
    anneal,
    launch,
    options,
    require_memory,
    value_units,
    with_noise,
)


@dataclasses.dataclass(frozen=True)
class PolicyConfig(options.PolicyConfig):
    """The deterministic policy, its target and its optimizer."""

    polyak: options.KeptShare = 0.98
    """share of its own parameters that the target policy keeps at each of its updates"""
    normalize: bool = True
    """divide the loss of the policy by 1 + the sum of the multipliers"""
    exploration_std: options.NotNegative = 0.1
    """standard deviation of the noise on actions in training, as a share of half the action range"""


@dataclasses.dataclass(frozen=True)
class TD3Config:
    """TD3: two reward critics, a delayed policy and smoothed targets."""

    delay: options.Repeats = 2
    """updates of the critics per update of the policy and its target"""
    smoothing_std: options.NotNegative = 0.2
    """standard deviation of the noise on the targets' next action, as a share of half the action range"""
    smoothing_clip: options.NotNegative = 0.5
    """largest noise on the targets' next action, as a share of half the action range"""


@dataclasses.dataclass(frozen=True)
class DDPGConfig:
    """DDPG: one reward critic (critics.reward_members is ignored), no delay and no smoothing."""


@dataclasses.dataclass(frozen=True)
class Config(options.OffPolicyConfig):
    """Configuration of TD3-Lag and DDPG-Lag. Each group holds the settings of one part."""

    recipe: ClassVar[str] = "td3_lag"
    policy: PolicyConfig = PolicyConfig()
    multiplier: options.Multiplier = options.PriceConfig()
    algorithm: TD3Config | DDPGConfig = TD3Config()


def make_policy(config: Config, task: Task) -> TensorDictModule:
    """Make a deterministic policy inside the action bounds."""
    sizes = config.policy.hidden_sizes
    return deterministic_policy(task.observation_dim, **task.bounds, hidden_sizes=sizes).to(task.device)


class TD3Lag(Learner):
    """The parts of TD3-Lag, and one update of them; its ``state_dict`` is the checkpoint."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        critics, td3 = config.critics, config.algorithm
        self.delay, smoothing = 1, None
        if isinstance(td3, TD3Config):
            self.delay = td3.delay
            smoothing = TargetSmoothing(
                **task.bounds, std=td3.smoothing_std, noise_clip=td3.smoothing_clip
            ).to(task.device)
        self.policy = make_policy(config, task)
        self.budget = config.budget.make()
        self.control = CostControl(config.multiplier, config, task, config.collect.frames_per_batch).to(
            task.device
        )
        critic = critics.make(task.observation_dim, task.action_dim, task.num_costs, **task.bounds)
        critic = critic.to(task.device)
        # The loss of the actor holds the target policy, which acts in the targets of the critics.
        self.actor = DeterministicLagLoss(
            self.policy,
            critic,
            self.control,
            in_spreads=self.control.in_spreads,
            normalize=config.policy.normalize,
        ).to(task.device)
        self.target_policy = Polyak(self.actor, eps=config.policy.polyak)
        targets = {"policy_params": self.actor.target_policy_params, "smooth_action": smoothing}
        self.critics = critics.make_learner(
            critic, self.policy, config.discount, encoder=task.make_encoder(), **targets
        )
        # Adam's usual 1e-8 is large beside the gradients of rewards of 0.001.
        self.optim = torch.optim.Adam([config.policy.group(self.actor.parameters())], eps=1e-20, fused=True)

    def update(self, transitions: TensorDictBase, number: int) -> dict[str, torch.Tensor]:
        """Take one step of the critics; at every ``delay``-th update also move the policy and its target."""
        metrics = self.critics.update(transitions)
        metrics |= self.control.metrics()
        if number % self.delay:
            return metrics
        out = self.actor(self.critics.encode(transitions))
        self.optim.zero_grad()
        out["loss_actor"].backward()
        self.optim.step()
        self.target_policy.step()
        metrics |= {"lambda": out["lam"], "actor_q_reward": out["q_reward"], "actor_q_cost": out["q_cost"]}
        return metrics | {"loss_actor": out["loss_actor"]}

    def observe(self, steps: TensorDictBase, episode_costs: torch.Tensor, frames: int) -> None:
        """Move the limit and the multiplier between two batches of frames."""
        self.budget.observe(episode_costs, frames)
        self.control.observe(self.budget.cost_limit, steps, episode_costs)


def main(config: Config) -> TD3Lag:
    """Train, and return the learner."""
    if isinstance(config.algorithm, DDPGConfig):
        config = dataclasses.replace(config, critics=dataclasses.replace(config.critics, reward_members=1))
    task = Task(config)
    require_memory(config, task)
    learner, replay = TD3Lag(config, task), Replay.of(config, observation_keys=task.observation_keys)
    policy = encoded_policy(learner.critics.encoder, learner.policy)
    explore = with_noise(policy, config.policy.exploration_std, task)
    with Run(config, learner=learner, policy=policy, norm=task.norm, replay=replay) as run:
        loop = Loop(run, task, policy, config.collect, explore=explore)
        if run.frames == 0:
            steps = loop.warm_up(config.critics.n_step + 1)
            replay.extend(steps)
            units = value_units(steps, task.limits, config.discount, task.episode_length)
            learner.critics.set_units(**units)
            for _ in range(config.critics.warmup_updates):
                learner.critics.update(replay.transitions())
        for steps in loop.collect():
            replay.extend(steps)
            learner.observe(steps, loop.episode_costs, run.frames)
            anneal(learner.optim, run.progress)
            for number in loop.updates_due():
                loop.record(learner.update(replay.transitions(), number))
            loop.report(shown=("lambda",))
    return learner


if __name__ == "__main__":
    launch(main, Config)
