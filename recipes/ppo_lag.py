"""On-policy learning with Lagrangian multipliers: PPO-Lag (Ray et al. 2019), FOCOPS and CRPO.

    python recipes/ppo_lag.py --env.id SafetyPointGoal1-v0 --cost-limit 25 --total-frames 2000000
    python recipes/ppo_lag.py --multiplier gradient
    python recipes/ppo_lag.py --algorithm focops              # FOCOPS (Zhang et al. 2020, arXiv 2002.06506)
    python recipes/ppo_lag.py --multiplier crpo               # CRPO (Xu et al. 2021, arXiv 2011.05869)
    python recipes/ppo_lag.py --resume runs/ppo_lag-...       # continue from the last checkpoint

    max_θ  mean min(r A, clip(r, 1 - ε, 1 + ε) A),    A = (A_r - λᵀ A_c) / (1 + Σ λ)

Here ``r`` is the ratio of the action's probability to its probability under the policy that collected it. The
advantages are generalized advantage estimates of the reward and of each cost. The episodes that end in a
batch of frames move the multipliers. The batch then serves a few epochs of updates and is dropped. FOCOPS
replaces the clipped objective by a fit to the best distribution near the old policy. CRPO has no multipliers:
it climbs ``A_r`` while the costs keep their limits, and ``-A_c`` otherwise. With ``--env.limits LOW HIGH``
each episode has a limit of its own, which the policy sees. Every metric is defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch.distributions import kl_divergence
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.common import LossModule
from torchrl.objectives.value import GAE

from safe_components import keys
from safe_components.critics import Copy, ValueNetwork
from safe_components.lagrangian import FOCOPSLoss
from safe_components.training import (
    CostControl,
    Learner,
    Loop,
    RangeControl,
    Run,
    Task,
    anneal,
    launch,
    options,
    require_memory,
    value_units,
)

# Entries that the advantage estimation of the cost renames, with the prefix ``cost_``.
COST_KEYS = ("value", "advantage", "value_target", "done", "terminated")
# Entries that an update reads, in addition to the log-probabilities.
LEARNED_FROM = (keys.OBSERVATION, keys.ACTION, "advantage", "value_target", "cost_value_target")

# Results of the losses that are metrics.
SHOWN = ("clip_fraction", "entropy", "kept_fraction")


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
    """PPO: the clipped objective."""

    clip: options.PositiveShare = 0.2
    """ε, the largest change of the probability ratio that the objective still rewards"""
    entropy_coef: options.NotNegative = 0.0
    """bonus per nat of entropy, in standard deviations of the advantage"""

    def make(self, policy: ProbabilisticTensorDictSequential) -> LossModule:
        """Make the loss of the policy."""
        loss = ClipPPOLoss(policy, clip_epsilon=self.clip, entropy_coeff=self.entropy_coef)
        loss.set_keys(sample_log_prob="log_prob")
        return loss


@dataclasses.dataclass(frozen=True)
class FOCOPSConfig:
    """FOCOPS: fit of the policy to the best distribution near the old policy."""

    temperature: options.Positive = 1.5
    """β of the best distribution, in standard deviations of the advantage; a larger one changes less"""
    max_kl: options.Positive = 0.02
    """δ, divergence from the old policy, in nats, beyond which a state no longer moves the policy"""

    def make(self, policy: ProbabilisticTensorDictSequential) -> LossModule:
        """Make the loss of the policy."""
        return FOCOPSLoss(policy, temperature=self.temperature, max_kl=self.max_kl)


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    """The updates after each batch of frames."""

    epochs: options.Repeats = 10
    """number of passes over the batch of frames"""
    batch_size: options.Count = 250
    """environment steps per update"""
    kl_stop: options.NotNegative = 0.03
    """KL divergence from the policy that collected the batch, in nats, that ends the epochs"""
    max_grad_norm: options.Positive = 1.0
    """largest norm of a gradient; the policy and the value networks are clipped separately"""


@dataclasses.dataclass(frozen=True)
class Config(options.RecipeConfig):
    """Configuration of PPO-Lag, FOCOPS and CRPO. Each group holds the settings of one part."""

    recipe: ClassVar[str] = "ppo_lag"
    collect: options.CollectConfig = options.CollectConfig(frames_per_batch=5_000)
    policy: options.GaussianConfig = options.GaussianConfig(lr=3e-4, lr_end=1.0)
    values: ValuesConfig = ValuesConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    # The gains are larger than in off-policy recipes, where the multiplier moves more often.
    multiplier: options.Multiplier | options.CRPOConfig | None = options.PriceConfig()
    algorithm: PPOConfig | FOCOPSConfig = PPOConfig()
    update: UpdateConfig = UpdateConfig()


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """Make a Gaussian policy whose mean stays inside the action bounds."""
    return config.policy.make(task.observation_dim, **task.bounds).to(task.device)


def make_value(config: Config, task: Task, outputs: int, out_key: str) -> TensorDictModule:
    """Make a network that estimates the discounted sums ``[..., outputs]`` from an observation."""
    network = ValueNetwork(task.observation_dim, outputs, config.values.hidden_sizes)
    return ValueOperator(network, in_keys=[keys.OBSERVATION], out_keys=[out_key]).to(task.device)


@torch.no_grad()
def add_advantage(
    steps: TensorDictBase,
    reward_gae: GAE,
    cost_gae: GAE,
    lam: torch.Tensor,
    in_spreads: bool = False,
    switch: bool = False,
) -> torch.Tensor:
    """Write ``advantage = (w A_r - λᵀ A_c) / (w + Σ λ)`` and the value networks' targets.

    The weight ``w`` is 1 with multipliers. With CRPO's switch it is ``1 - Σ λ``, so the reward does not count
    while a cost is over its limit. Both estimates bootstrap after truncation but not after termination.

    Args:
        steps: steps ``[..., T]``, consecutive in the last dimension, which are changed in place.
        reward_gae: estimator that reads the reward and writes ``advantage`` and ``value_target``.
        cost_gae: estimator that reads the costs ``[..., T, m]``; its other keys are ``COST_KEYS`` with the
            prefix ``cost_``.
        lam: multipliers ``[m]``, or those of each step ``[..., T, m]``.
        in_spreads: whether they are prices: ``λ_i = θ_i std A_r / std A_c,i``.
        switch: whether they are CRPO's.

    Returns:
        ``λ [m]``, reward per cost, the mean over the steps.
    """
    cost = steps[keys.COST]
    for name in ("done", "terminated"):  # GAE needs one flag per cost
        steps["next", f"cost_{name}"] = steps["next", name].expand_as(cost)
    cost_gae(reward_gae(steps))
    lam = lam.to(cost)
    if in_spreads and len(lam):
        spread = steps["cost_advantage"].flatten(0, -2).std(0)
        lam = torch.where(spread > 0, lam * steps["advantage"].std() / spread, 0.0)
    total = lam.sum(-1, keepdim=True)
    weight = 1 - total if switch else 1.0
    penalty = (steps["cost_advantage"] * lam).sum(-1, keepdim=True)
    steps["advantage"] = (weight * steps["advantage"] - penalty) / (weight + total)
    return lam.reshape(-1, lam.shape[-1]).mean(0)


def standardize(advantage: torch.Tensor) -> torch.Tensor:
    """Return ``(A - mean A) / std A`` over ``[N, 1]``, and 0 if all advantages are equal."""
    centered = advantage - advantage.mean()
    return centered / centered.square().mean().sqrt().clamp_min(torch.finfo(centered.dtype).tiny)


class PPOLag(Learner):
    """The parts of PPO-Lag, FOCOPS or CRPO, and one update; its ``state_dict`` is the checkpoint."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        self.settings, advantage = config.update, config.advantage
        self.switch = isinstance(config.multiplier, options.CRPOConfig)
        self.policy = make_policy(config, task)
        self.reward_value = make_value(config, task, 1, "state_value")
        self.cost_value = make_value(config, task, task.num_costs, "cost_value")
        self.budget = config.budget.make()
        self.control: CostControl | RangeControl | None = None
        if config.env.limits:
            self.control = RangeControl(config.multiplier, config, task, config.collect.frames_per_batch)
        elif config.multiplier is not None:
            self.control = CostControl(config.multiplier, config, task, config.collect.frames_per_batch)
        self.to(task.device)
        discounts = {"gamma": advantage.gamma, "lmbda": advantage.gae_lambda, "device": task.device}
        self.reward_gae = GAE(value_network=self.reward_value, **discounts)
        self.cost_gae = GAE(value_network=self.cost_value, **discounts)
        self.cost_gae.set_keys(**{name: f"cost_{name}" for name in COST_KEYS}, reward="cost")
        self.loss = config.algorithm.make(self.policy)
        # FOCOPS holds the policy that collected the steps.
        self.old_policy = Copy(self.loss) if isinstance(self.loss, FOCOPSLoss) else None
        self.policy_optim = torch.optim.Adam([config.policy.group(self.policy.parameters())], fused=True)
        self.value_parameters = [*self.reward_value.parameters(), *self.cost_value.parameters()]
        self.value_optim = torch.optim.Adam(self.value_parameters, lr=config.values.lr)

    def set_units(self, reward: torch.Tensor, cost: torch.Tensor) -> None:
        """Set the units of the value networks, before any update."""
        self.reward_value.module.set_unit(reward)
        self.cost_value.module.set_unit(cost)

    @property
    def value_unit(self) -> torch.Tensor:
        """The units of the reward's value and the costs' ``[1 + m]``."""
        return torch.cat([self.reward_value.module.unit, self.cost_value.module.unit])

    def epochs(self, steps: TensorDictBase) -> Iterator[tuple[TensorDictBase, ...]]:
        """Yield the batches of each pass over steps ``[N, T]``, until the policy has moved too far."""
        price, in_spreads = steps[keys.COST].new_zeros(steps[keys.COST].shape[-1]), False
        if self.control is not None:
            price = self.control(steps) if isinstance(self.control, RangeControl) else self.control()
            in_spreads = self.control.in_spreads
        self.lam = add_advantage(steps, self.reward_gae, self.cost_gae, price, in_spreads, self.switch)
        steps = steps.select(*LEARNED_FROM).reshape(-1)
        if self.old_policy is not None:
            self.old_policy.step()
        with torch.no_grad():
            before = self.policy.get_dist(steps)
        steps["log_prob"] = before.log_prob(steps[keys.ACTION])
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
        out = dict(self.loss(batch).items())
        loss_policy = torch.stack([out[name] for name in out if name.startswith("loss_")]).sum()
        error_reward = self.reward_value(batch)["state_value"] - batch["value_target"]
        error_cost = self.cost_value(batch)["cost_value"] - batch["cost_value_target"]
        errors = torch.cat([error_reward, error_cost], -1)
        loss_values = (errors / self.value_unit).square().mean(0).sum()
        self.policy_optim.zero_grad()
        self.value_optim.zero_grad()
        torch.autograd.backward(loss_policy + loss_values)
        longest = self.settings.max_grad_norm
        policy_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), longest)
        torch.nn.utils.clip_grad_norm_(self.value_parameters, longest)
        self.policy_optim.step()
        self.value_optim.step()
        metrics = {"loss_policy": loss_policy, "policy_gradient": policy_norm}
        loss_reward, loss_cost = (error.square().mean(0).sum() for error in (error_reward, error_cost))
        metrics |= {"loss_value_reward": loss_reward, "loss_value_cost": loss_cost}
        return metrics | {name: out[name] for name in SHOWN if name in out}

    def observe(self, steps: TensorDictBase, episode_costs: torch.Tensor, frames: int) -> None:
        """Move the limit and the multiplier between two batches of frames."""
        self.budget.observe(episode_costs, frames)
        if isinstance(self.control, RangeControl):
            self.control.observe(steps)
        elif self.control is not None:
            self.control.observe(self.budget.cost_limit, steps, episode_costs)

    def metrics(self) -> dict[str, torch.Tensor]:
        """Return the metrics of a batch of frames."""
        price = {} if self.control is None else self.control.metrics()
        return price | {"lambda": self.lam, "kl": self.kl}


def main(config: Config) -> PPOLag:
    """Train, and return the learner."""
    task = Task(config)
    require_memory(config, task)
    learner = PPOLag(config, task)
    with Run(config, learner=learner, policy=learner.policy, norm=task.norm) as run:
        loop = Loop(run, task, learner.policy, config.collect)
        if run.frames == 0:
            gamma = config.advantage.gamma
            learner.set_units(**value_units(loop.warm_up(), task.limits, gamma, task.episode_length))
        for steps in loop.collect():
            learner.observe(steps, loop.episode_costs, run.frames)
            anneal(learner.policy_optim, run.progress)
            for batches in learner.epochs(steps.to(task.device)):
                for batch in batches:
                    run.count_update()
                    loop.record(learner.update(batch))
            loop.record(learner.metrics())
            loop.report(shown=("lambda", "kl"))
    return learner


if __name__ == "__main__":
    launch(main, Config)
