"""PPO with Lagrangian multipliers (Ray et al. 2019; PID: Stooke et al. 2020, arXiv 2007.03964).

    python recipes/ppo_lag.py --env.id SafetyPointGoal1-v0 --cost-limit 25 --total-frames 2000000
    python recipes/ppo_lag.py --multiplier gradient
    python recipes/ppo_lag.py --resume runs/ppo_lag-...       # go on from the last checkpoint

    max_theta  mean min(r A, clip(r, 1 - e, 1 + e) A),    A = (A_r - lambda^T A_c) / (1 + sum lambda)

where ``r`` is the ratio of the action's probability to that under the policy that collected it, and the
advantages are generalised advantage estimates of the reward and of each cost. On-policy: each batch of
frames moves the multipliers by the episodes that ended in it, serves a few epochs of updates and is
forgotten. Every metric is defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch.distributions import kl_divergence
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from plumbing import LagrangianConfig, Task, make_multiplier, report
from safe_components import keys
from safe_components.collectors import make_collector
from safe_components.policies import gaussian_policy
from safe_components.training import (
    Averages,
    EpisodeStatistics,
    Run,
    launch,
    require_finite,
    workers_ignore_interrupt,
)

# What the cost's advantage estimation writes and reads under names of its own.
COST_KEYS = ("value", "advantage", "value_target", "done", "terminated")
# What an update reads, besides the log-probabilities.
LEARNT_FROM = (keys.OBSERVATION, keys.ACTION, "advantage", "value_target", "cost_value_target")
AT_LEAST = {"frames_per_batch": 1, "epochs": 1, "batch_size": 1, "clip": 0, "kl_stop": 0, "max_grad_norm": 0}


@dataclasses.dataclass(frozen=True)
class Config(LagrangianConfig):
    """PPO-Lag. Reward and cost are treated alike, but for the multiplier between them."""

    hidden_sizes: tuple[int, ...] = (128, 128)
    """hidden layers of the policy and of both value networks"""
    covariance: Literal["full", "diagonal"] = "diagonal"
    """of the Gaussian policy"""
    pid_kp: float = 0.05
    """proportional gain of PID control; larger than off-policy, where the multiplier moves more often"""
    pid_kd: float = 0.1
    """derivative gain of PID control; likewise"""
    gamma: float = 0.99
    """discount of reward and cost"""
    gae_lambda: float = 0.95
    """of both advantage estimates: 0 trusts the value network, 1 the sampled returns"""
    frames_per_batch: int = 5_000
    """frames collected with one policy; best whole episodes of every environment"""
    epochs: int = 10
    """passes over them"""
    batch_size: int = 250
    """steps per update"""
    clip: float = 0.2
    """largest change of an action's probability ratio that is still rewarded"""
    kl_stop: float = 0.03
    """no further epoch once the policy is so far, in nats, from the one that collected"""
    entropy_coef: float = 0.0
    """reward for entropy, per nat, in standard deviations of the advantage"""
    max_grad_norm: float = 1.0
    """longer gradients are shortened to this, the policy's and the value networks' apart"""
    policy_lr: float = 3e-4
    """Adam's step size for the policy"""
    value_lr: float = 1e-3
    """Adam's step size for the value networks"""
    warmup_frames: int = 5_000
    """first frames, of random actions, whose statistics scale the observations; not learnt from"""


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """A Gaussian whose mean stays inside the action bounds."""
    sizes = {"hidden_sizes": config.hidden_sizes, "covariance": config.covariance}
    return gaussian_policy(task.observation_dim, **task.bounds, **sizes).to(task.device)


def make_value(config: Config, task: Task, outputs: int, out_key: str) -> TensorDictModule:
    """Discounted sums from an observation on, ``[..., outputs]``."""
    network = MLP(
        task.observation_dim, outputs, num_cells=config.hidden_sizes, activation_class=torch.nn.Tanh
    )
    return ValueOperator(network, in_keys=[keys.OBSERVATION], out_keys=[out_key]).to(task.device)


@torch.no_grad()
def add_advantage(steps: TensorDictBase, reward_gae: GAE, cost_gae: GAE, lam: torch.Tensor) -> TensorDictBase:
    """``advantage = (A_r - lam^T A_c) / (1 + sum lam)``, and the value networks' targets.

    Both estimates bootstrap through truncation, never through termination.

    Args:
        steps: ``[..., T]``, consecutive in the last dimension; changed in place.
        reward_gae: reads the reward, writes ``advantage`` and ``value_target``.
        cost_gae: reads the costs ``[..., T, m]``, its own keys being the ``COST_KEYS`` after ``cost_``.
        lam: multipliers ``[m]``.

    Returns:
        ``steps``.
    """
    cost = steps[keys.COST]
    for name in ("done", "terminated"):  # GAE wants one flag per cost
        steps["next", f"cost_{name}"] = steps["next", name].expand_as(cost)
    cost_gae(reward_gae(steps))
    lam = lam.to(cost)
    penalty = (steps["cost_advantage"] * lam).sum(-1, keepdim=True)
    steps["advantage"] = (steps["advantage"] - penalty) / (1 + lam.sum())
    return steps


def standardise(advantage: torch.Tensor) -> torch.Tensor:
    """``(A - mean A) / std A`` over ``[N, 1]``; 0 where all are equal."""
    centred = advantage - advantage.mean()
    return centred / centred.square().mean().sqrt().clamp_min(torch.finfo(centred.dtype).tiny)


def main(config: Config) -> None:
    """Train."""
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is {getattr(config, name)}, must lie in [0, 1]")
    for name, least in AT_LEAST.items():
        if not getattr(config, name) >= least:
            raise ValueError(f"{name} is {getattr(config, name)}, must be at least {least}")
    task = Task(config)
    policy = make_policy(config, task)
    reward_value = make_value(config, task, 1, "state_value")
    cost_value = make_value(config, task, task.num_costs, "cost_value")
    multiplier = make_multiplier(config)

    discounts = {"gamma": config.gamma, "lmbda": config.gae_lambda, "device": task.device}
    reward_gae = GAE(value_network=reward_value, **discounts)
    cost_gae = GAE(value_network=cost_value, **discounts)
    cost_gae.set_keys(**{name: f"cost_{name}" for name in COST_KEYS}, reward="cost")
    ppo = ClipPPOLoss(
        policy,
        reward_value,
        clip_epsilon=config.clip,
        entropy_bonus=True,
        entropy_coeff=config.entropy_coef,
        critic_coeff=1.0,
        loss_critic_type="l2",
    )
    policy_optim = torch.optim.Adam(policy.parameters(), lr=config.policy_lr)
    value_parameters = [*reward_value.parameters(), *cost_value.parameters()]
    value_optim = torch.optim.Adam(value_parameters, lr=config.value_lr)

    def update(batch: TensorDictBase) -> dict[str, torch.Tensor]:
        """One step of the policy and the value networks."""
        out = ppo(batch)
        error = cost_value(batch)["cost_value"] - batch["cost_value_target"]
        loss_cost = error.square().mean(0).sum()
        loss = out["loss_objective"] + out["loss_entropy"] + out["loss_critic"] + loss_cost
        policy_optim.zero_grad()
        value_optim.zero_grad()
        loss.backward()
        policy_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        torch.nn.utils.clip_grad_norm_(value_parameters, config.max_grad_norm)
        policy_optim.step()
        value_optim.step()
        run.count_update()
        return {
            "loss_policy": out["loss_objective"],
            "loss_value_reward": out["loss_critic"],
            "loss_value_cost": loss_cost,
            "clip_fraction": out["clip_fraction"],
            "entropy": out["entropy"],
            "policy_gradient": policy_norm,
        }

    components = {
        "policy": policy,
        "norm": task.norm,
        "reward_value": reward_value,
        "cost_value": cost_value,
        "multiplier": multiplier,
        "policy_optim": policy_optim,
        "value_optim": value_optim,
    }
    averages, episodes = Averages(), EpisodeStatistics(config.cost_limit)
    with Run(config, "ppo_lag", **components) as run:
        if run.frames == 0:
            with run.watch("collecting"):
                warm_up = task.warm_up(config.warmup_frames, seed=config.seed)
            run.advance(warm_up.numel() * config.env.frame_skip)
            episodes.add(warm_up)
        with workers_ignore_interrupt():
            collector = make_collector(
                lambda: task.training_env(config.seed + run.frames),
                policy,
                frames_per_batch=config.frames_per_batch // config.env.frame_skip,
                policy_device=task.device,
                env_device=task.env_device,
            )
        eval_env = task.evaluation_env()
        for collected in run.watch.each("collecting", collector):
            since = run.frames
            run.advance(collected.numel() * config.env.frame_skip)
            require_finite(collected, run.frames)
            costs = episodes.add(collected)
            if len(costs):
                multiplier.update(costs.mean(0))

            steps = add_advantage(collected.to(task.device), reward_gae, cost_gae, multiplier())
            steps = steps.select(*LEARNT_FROM).reshape(-1)
            with torch.no_grad():
                before = policy.get_dist(steps)
            steps[ppo.tensor_keys.sample_log_prob] = before.log_prob(steps[keys.ACTION])
            # In standard deviations, so that step sizes do not depend on the scale of the reward.
            steps["advantage"] = standardise(steps["advantage"])
            for _ in range(config.epochs):
                shuffled = steps[torch.randperm(len(steps), device=task.device)]
                for batch in shuffled.split(config.batch_size):
                    averages.add(update(batch))
                with torch.no_grad():
                    kl = kl_divergence(before, policy.get_dist(steps)).mean()
                if kl > config.kl_stop:
                    break
            averages.add({"lambda": multiplier(), "lambda_capped": multiplier.clipped, "kl": kl})
            collector.update_policy_weights_()
            report(run, since, averages, episodes, policy, eval_env, shown=("lambda", "kl"))
            if run.finished:
                break
        collector.shutdown()


if __name__ == "__main__":
    launch(main, Config)
