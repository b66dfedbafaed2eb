"""PPO with Lagrangian multipliers (Ray et al. 2019; PID: Stooke et al. 2020, arXiv 2007.03964).

    python recipes/ppo_lag.py --env.id SafetyPointGoal1-v0 --cost-limit 25 --seed 1
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
from torch.nn.functional import mse_loss
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


@dataclasses.dataclass(frozen=True)
class Config(LagrangianConfig):
    """PPO-Lag. Reward and cost are treated alike, but for the multiplier between them."""

    hidden_sizes: tuple[int, ...] = (128, 128)
    """hidden layers of the policy and of both value networks"""
    covariance: Literal["full", "diagonal"] = "full"
    """of the Gaussian policy"""
    gamma: float = 0.99
    """discount of reward and cost"""
    gae_lambda: float = 0.95
    """of both advantage estimates: 0 trusts the value network, 1 the sampled returns"""
    frames_per_batch: int = 4_000
    """frames collected with one policy; those of a few whole episodes, or the multiplier waits"""
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


def main(config: Config) -> None:
    """Train."""
    for name in ("epochs", "batch_size", "frames_per_batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, must be at least 1")
    task = Task(config)
    policy = make_policy(config, task)
    reward_value = make_value(config, task, 1, "state_value")
    cost_value = make_value(config, task, task.num_costs, "cost_value")
    multiplier = make_multiplier(config)

    # Both bootstrap through truncation, never through termination.
    discounts = {"gamma": config.gamma, "lmbda": config.gae_lambda, "device": task.device}
    reward_gae = GAE(value_network=reward_value, **discounts)
    cost_gae = GAE(value_network=cost_value, **discounts)
    cost_gae.set_keys(
        reward="cost",
        value="cost_value",
        advantage="cost_advantage",
        value_target="cost_value_target",
        done="cost_done",
        terminated="cost_terminated",
    )
    ppo = ClipPPOLoss(
        policy,
        reward_value,
        clip_epsilon=config.clip,
        entropy_bonus=True,
        entropy_coeff=config.entropy_coef,
        critic_coeff=1.0,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    policy_optim = torch.optim.Adam(policy.parameters(), lr=config.policy_lr)
    value_parameters = [*reward_value.parameters(), *cost_value.parameters()]
    value_optim = torch.optim.Adam(value_parameters, lr=config.value_lr)

    @torch.no_grad()
    def estimate(steps: TensorDictBase) -> TensorDictBase:
        """Collected steps ``[..., T]`` with advantages, value targets and log-probabilities, as ``[N]``."""
        cost = steps[keys.COST]
        for name in ("done", "terminated"):  # one flag per cost, as GAE compares shapes
            steps["next", f"cost_{name}"] = steps["next", name].expand_as(cost)
        cost_gae(reward_gae(steps))
        lam = multiplier().to(cost)
        penalty = (steps["cost_advantage"] * lam).sum(-1, keepdim=True)
        steps["advantage"] = (steps["advantage"] - penalty) / (1 + lam.sum())
        steps[ppo.tensor_keys.sample_log_prob] = policy.get_dist(steps).log_prob(steps[keys.ACTION])
        return steps.exclude("next").reshape(-1)

    def update(batch: TensorDictBase) -> dict[str, torch.Tensor]:
        """One step of the policy and the value networks."""
        out = ppo(batch)
        loss_cost = mse_loss(cost_value(batch)["cost_value"], batch["cost_value_target"])
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
            warm_up = task.warm_up(config.warmup_frames, seed=config.seed)
            run.advance(warm_up.numel() * config.env.frame_skip)
            episodes.add(warm_up)
        with workers_ignore_interrupt():
            collector = make_collector(
                lambda: task.training_env(config.seed + run.frames),
                policy,
                frames_per_batch=config.frames_per_batch // config.env.frame_skip,
                policy_device=task.device,
                env_device="cpu",
            )
        eval_env = task.evaluation_env()
        for collected in collector:
            since = run.frames
            run.advance(collected.numel() * config.env.frame_skip)
            require_finite(collected, run.frames)
            costs = episodes.add(collected)
            if len(costs):
                multiplier.update(costs.mean(0))

            steps = estimate(collected.to(task.device))
            with torch.no_grad():
                before = policy.get_dist(steps)
            for _ in range(config.epochs):
                shuffled = steps[torch.randperm(len(steps), device=task.device)]
                for batch in shuffled.split(config.batch_size):
                    averages.add(update(batch))
                with torch.no_grad():
                    kl = kl_divergence(before, policy.get_dist(steps)).mean()
                if kl > config.kl_stop:
                    break
            averages.add({"lambda": multiplier(), "kl": kl})
            collector.update_policy_weights_()
            report(run, since, averages, episodes, policy, eval_env, shown=("lambda", "kl"))
            if run.finished:
                break
        collector.shutdown()


if __name__ == "__main__":
    launch(main, Config)
