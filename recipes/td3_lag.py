"""Twin delayed deterministic policy gradient with a Lagrangian multiplier (TD3-Lag).

    python recipes/td3_lag.py                                 # SafetyPointCircle1-v0, limit 25
    python recipes/td3_lag.py --multiplier gradient --env.id SafetyPointGoal1-v0 --seed 1
    python recipes/td3_lag.py --resume runs/td3_lag-...       # go on from the last checkpoint

TD3 (Fujimoto et al. 2018, arXiv 1802.09477) whose actor maximises reward minus the costs, each charged at
its multiplier, which follows the episodes just collected: docs/lagrangian.md. Every metric is defined in
docs/metrics.md.
"""

from __future__ import annotations

import dataclasses

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule

from plumbing import (
    ConstrainedCritics,
    OffPolicyLagrangianConfig,
    Polyak,
    Task,
    make_multiplier,
    require_memory,
    train_lagrangian,
    with_noise,
)
from safe_components.critics import TargetSmoothing
from safe_components.lagrangian import DeterministicLagLoss
from safe_components.policies import deterministic_policy
from safe_components.training import launch


@dataclasses.dataclass(frozen=True)
class Config(OffPolicyLagrangianConfig):
    """TD3-Lag. The fields below are the algorithm's; those above are shared."""

    exploration_std: float = 0.1
    """standard deviation of the noise on collected actions, as a share of half the action range"""
    policy_delay: int = 2
    """updates of the critics per update of the actor and its target"""
    policy_polyak: float = 0.98
    """share the target actor keeps at each of its updates"""
    smoothing_std: float = 0.2
    """standard deviation of the noise on the targets' next action, as a share of half the action range"""
    smoothing_clip: float = 0.5
    """largest such noise, likewise"""
    normalise: bool = True
    """divide the actor's loss by 1 + the sum of the multipliers"""


def make_policy(config: Config, task: Task) -> TensorDictModule:
    """A deterministic actor inside the action bounds."""
    sizes = {"hidden_sizes": config.hidden_sizes}
    return deterministic_policy(task.observation_dim, **task.bounds, **sizes).to(task.device)


def main(config: Config) -> None:
    """Train."""
    if config.policy_delay < 1:
        raise ValueError(f"policy_delay is {config.policy_delay}, must be at least 1")
    task = Task(config)
    require_memory(config, task)
    policy = make_policy(config, task)
    multiplier = make_multiplier(config)

    # The actor's loss, made last, holds the target actor that the critics' targets follow.
    critics = ConstrainedCritics(
        config,
        task,
        policy,
        policy_params=lambda: actor.target_policy_params,
        smooth_action=TargetSmoothing(
            **task.bounds, std=config.smoothing_std, noise_clip=config.smoothing_clip
        ).to(task.device),
    )
    actor = DeterministicLagLoss(
        policy, critics.critic.reward(), critics.critic.cost(), multiplier, normalise=config.normalise
    ).to(task.device)
    target_actor = Polyak(actor, eps=config.policy_polyak)
    policy_optim = torch.optim.Adam(actor.parameters(), lr=config.policy_lr)

    def improve(batch: TensorDictBase, updates: int) -> dict[str, torch.Tensor]:
        """Every ``policy_delay`` updates one step of the actor and its target."""
        if updates % config.policy_delay:
            return {}
        out = actor(batch)
        policy_optim.zero_grad()
        out["loss_actor"].backward()
        policy_optim.step()
        target_actor.step()
        return {
            "actor_q_reward": out["q_reward"],
            "actor_q_cost": out["q_cost"],
            "loss_actor": out["loss_actor"],
        }

    train_lagrangian(
        config,
        "td3_lag",
        task,
        policy,
        critics,
        multiplier,
        improve=improve,
        components={"actor": actor, "policy_optim": policy_optim},
        explore=with_noise(policy, config.exploration_std, task),
    )


if __name__ == "__main__":
    launch(main, Config)
