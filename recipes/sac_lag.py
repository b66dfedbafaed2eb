"""Soft actor-critic with a Lagrangian multiplier (SAC-Lag), and CAL (Wu et al. 2024, arXiv 2401.14758).

    python recipes/sac_lag.py                                 # SafetyPointCircle1-v0, limit 25
    python recipes/sac_lag.py --multiplier gradient --env.id SafetyPointGoal1-v0 --seed 1
    python recipes/sac_lag.py --augmentation cal              # conservative costs, augmented Lagrangian
    python recipes/sac_lag.py --resume runs/sac_lag-...       # continue from the last checkpoint

The actor maximizes the reward minus the costs, each weighted by its multiplier. The multipliers follow the
cost of the episodes just collected (docs/lagrangian.md). Every metric is defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential

from safe_components.lagrangian import SACLagLoss
from safe_components.policies import encoded_policy, tanh_gaussian_policy
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
)


@dataclasses.dataclass(frozen=True)
class PolicyConfig(options.PolicyConfig):
    """The squashed Gaussian policy and its optimizer."""

    normalize: bool = True
    """divide the loss of the policy by 1 + the sum of the multipliers"""


@dataclasses.dataclass(frozen=True)
class EntropyConfig:
    """The temperature, which keeps the entropy of the policy near a target."""

    init_alpha: options.Positive = 0.01
    """initial temperature per nat of entropy, in units of the reward's value (see `value_units`)"""
    lr: options.StepSize = 1e-3
    """step size of Adam for the logarithm of the temperature"""
    target: options.Real | None = None
    """target of the entropy, in nats; None takes minus the dimension of the action"""


@dataclasses.dataclass(frozen=True)
class CALConfig:
    """CAL: conservative costs in the loss of the policy, and the augmented Lagrangian."""

    coef: options.Positive = 10.0
    """c, the additional multiplier per discounted cost over the limit"""
    cost_members: options.Repeats = 4
    """ensemble size for the costs, in place of critics.cost_members"""


@dataclasses.dataclass(frozen=True)
class Config(options.OffPolicyConfig):
    """Configuration of SAC-Lag. Each group holds the settings of one part."""

    recipe: ClassVar[str] = "sac_lag"
    policy: PolicyConfig = PolicyConfig()
    multiplier: options.Multiplier = options.PriceConfig()
    entropy: EntropyConfig = EntropyConfig()
    augmentation: CALConfig | None = None


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """Make a Gaussian policy squashed into the action bounds."""
    sizes = config.policy.hidden_sizes
    return tanh_gaussian_policy(task.observation_dim, **task.bounds, hidden_sizes=sizes).to(task.device)


class SACLag(Learner):
    """The parts of SAC-Lag, and one update of them; its ``state_dict`` is the checkpoint."""

    actor: SACLagLoss

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        critics, cal, entropy = config.critics, config.augmentation, config.entropy
        self.policy = make_policy(config, task)
        discounted = (config.discount, task.episode_length) if cal else ()
        self.budget = config.budget.make(*discounted).to(task.device)
        self.control = CostControl(config.multiplier, config, task, config.collect.frames_per_batch).to(
            task.device
        )
        critic = critics.make(task.observation_dim, task.action_dim, task.num_costs, **task.bounds)
        critic = critic.to(task.device)
        # CAL is conservative only in the loss of the policy. In the targets the bias would add up over steps.
        soft = {"entropy_coef": lambda: self.actor.alpha}
        self.critics = critics.make_learner(
            critic,
            self.policy,
            config.discount,
            "mean" if cal else None,
            encoder=task.make_encoder(),
            **soft,
        )
        self.actor = SACLagLoss(
            self.policy,
            critic,
            self.control,
            in_spreads=self.control.in_spreads,
            cost_aggregate="conservative" if cal else critics.cost_aggregate,
            std_coef=critics.cost_std,
            target_entropy="auto" if entropy.target is None else entropy.target,
            init_alpha=entropy.init_alpha,
            normalize=config.policy.normalize,
            augmentation=cal.coef if cal else 0.0,
            q_cost_limit=self.budget.q_limit if cal else None,
        ).to(task.device)
        policy = config.policy.group(self.actor.policy_params.values(True, True))
        # Adam's usual 1e-8 is large beside the gradients of rewards of 0.001.
        temperature = {"params": [self.actor.log_alpha], "lr": entropy.lr}
        self.optim = torch.optim.Adam([policy, temperature], eps=1e-20, fused=True)

    def set_units(self, reward: torch.Tensor, **costs: torch.Tensor) -> None:
        """Set the units of the critics and of the temperature, before any update."""
        self.critics.set_units(reward=reward, **costs)
        self.actor.log_alpha.data.add_(reward.log().squeeze(0))

    def update(self, transitions: TensorDictBase) -> dict[str, torch.Tensor]:
        """Take one step of the critics, one of the policy and one of its temperature."""
        metrics = self.critics.update(transitions)
        out = self.actor(self.critics.encode(transitions))
        self.optim.zero_grad()
        (out["loss_actor"] + out["loss_alpha"]).backward()
        self.optim.step()
        metrics |= self.control.metrics()
        metrics |= {"lambda": out["lam"], "lambda_effective": out["lam_effective"]}
        if self.actor.q_cost_limit is not None:  # only CAL has it
            metrics["q_cost_limit"] = self.actor.q_cost_limit
        metrics |= {"actor_q_reward": out["q_reward"], "actor_q_cost": out["q_cost"]}
        return metrics | {name: out[name] for name in ("loss_actor", "alpha", "entropy")}

    def observe(self, steps: TensorDictBase, episode_costs: torch.Tensor, frames: int) -> None:
        """Move the limit and the multiplier between two batches of frames."""
        self.budget.observe(episode_costs, frames)
        self.control.observe(self.budget.cost_limit, steps, episode_costs)


def main(config: Config) -> SACLag:
    """Train, and return the learner."""
    if cal := config.augmentation:
        critics = dataclasses.replace(config.critics, cost_members=cal.cost_members)
        config = dataclasses.replace(config, critics=critics)
    task = Task(config)
    require_memory(config, task)
    learner, replay = SACLag(config, task), Replay.of(config, observation_keys=task.observation_keys)
    policy = encoded_policy(learner.critics.encoder, learner.policy)
    with Run(config, learner=learner, policy=policy, norm=task.norm, replay=replay) as run:
        loop = Loop(run, task, policy, config.collect)
        if run.frames == 0:
            steps = loop.warm_up(config.critics.n_step + 1)
            replay.extend(steps)
            units = value_units(steps, task.limits, config.discount, task.episode_length)
            learner.set_units(**units)
            for _ in range(config.critics.warmup_updates):
                learner.critics.update(replay.transitions())
        for steps in loop.collect():
            replay.extend(steps)
            learner.observe(steps, loop.episode_costs, run.frames)
            anneal(learner.optim, run.progress)
            for _ in loop.updates_due():
                loop.record(learner.update(replay.transitions()))
            loop.report(shown=("lambda", "alpha"))
    return learner


if __name__ == "__main__":
    launch(main, Config)
