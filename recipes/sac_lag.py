"""Soft actor-critic with a Lagrangian multiplier (SAC-Lag), and CAL (Wu et al. 2024, arXiv 2401.14758).

    python recipes/sac_lag.py                                 # SafetyPointCircle1-v0, limit 25
    python recipes/sac_lag.py --multiplier gradient --env.id SafetyPointGoal1-v0 --seed 1
    python recipes/sac_lag.py --cal                           # conservative costs, augmented Lagrangian
    python recipes/sac_lag.py --resume runs/sac_lag-...       # go on from the last checkpoint

The actor maximises reward minus the costs, each charged at its multiplier, which follows the episodes just
collected: docs/lagrangian.md. Every metric is defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential

from plumbing import (
    ConstrainedCritics,
    OffPolicyLagrangianConfig,
    Task,
    make_multiplier,
    require_memory,
    train_lagrangian,
)
from safe_components.lagrangian import SACLagLoss
from safe_components.ops import q_cost_limit
from safe_components.policies import tanh_gaussian_policy
from safe_components.training import launch


@dataclasses.dataclass(frozen=True)
class Config(OffPolicyLagrangianConfig):
    """SAC-Lag. The fields below are the algorithm's; those above are shared."""

    reward_critics: int = 2
    """ensemble size; the minimum is used"""
    cost_aggregate: Literal["mean", "max", "conservative"] = "mean"
    """how the cost ensemble becomes one number; conservative is mean + cost_std standard deviations"""
    cost_std: float = 0.5
    """these standard deviations"""
    init_alpha: float = 0.1
    """first temperature, in reward per nat of entropy"""
    alpha_lr: float = 1e-3
    """Adam's step size for the logarithm of the temperature"""
    target_entropy: float | None = None
    """entropy the temperature aims at, in nats; None is minus the number of actions"""
    normalise: bool = True
    """divide the actor's loss by 1 + the sum of the multipliers"""
    cal: bool = False
    """CAL: conservative costs from cal_critics members, and the augmented Lagrangian"""
    cal_critics: int = 4
    """CAL: ensemble size of the costs, in place of cost_critics"""
    cal_augmentation: float = 10.0
    """CAL: c, multiplier per discounted cost over the limit"""


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """A Gaussian squashed into the action bounds."""
    sizes = {"hidden_sizes": config.hidden_sizes}
    return tanh_gaussian_policy(task.observation_dim, **task.bounds, **sizes).to(task.device)


def main(config: Config) -> None:
    """Train."""
    task = Task(config)
    members = config.cal_critics if config.cal else config.cost_critics
    critic_config = dataclasses.replace(config, cost_critics=members)
    require_memory(critic_config, task, config.reward_critics)
    policy = make_policy(config, task)
    multiplier = make_multiplier(config)
    critics = ConstrainedCritics(
        critic_config,
        task,
        policy,
        reward_critics=config.reward_critics,
        # CAL is conservative in the actor's loss only: in the targets it would add up over the steps.
        cost_aggregate="mean" if config.cal else config.cost_aggregate,
        cost_std_coef=config.cost_std,
        entropy_coef=lambda: actor.alpha,
    )
    # Limits are set on sums over an episode, critics estimate discounted sums: docs/cost_budget.md.
    limits = q_cost_limit(config.cost_limit, config.gamma, task.episode_length) if config.cal else None
    actor = SACLagLoss(
        policy,
        critics.critic.reward(),
        critics.critic.cost(),
        multiplier,
        cost_aggregate="conservative" if config.cal else config.cost_aggregate,
        std_coef=config.cost_std,
        target_entropy="auto" if config.target_entropy is None else config.target_entropy,
        init_alpha=config.init_alpha,
        normalise=config.normalise,
        augmentation=config.cal_augmentation if config.cal else 0.0,
        q_cost_limit=limits,
    ).to(task.device)
    policy_optim = torch.optim.Adam(
        [
            {"params": list(actor.policy_params.values(True, True)), "lr": config.policy_lr},
            {"params": [actor.log_alpha], "lr": config.alpha_lr},
        ]
    )

    def improve(batch: TensorDictBase, updates: int) -> dict[str, torch.Tensor]:
        """One step of the actor and of its temperature."""
        out = actor(batch)
        policy_optim.zero_grad()
        (out["loss_actor"] + out["loss_alpha"]).backward()
        policy_optim.step()
        return {
            "lambda_effective": out["lam_effective"],
            "actor_q_reward": out["q_reward"],
            "actor_q_cost": out["q_cost"],
            "loss_actor": out["loss_actor"],
            "alpha": out["alpha"],
            "entropy": out["entropy"],
            **({"q_cost_limit": limits} if config.cal else {}),
        }

    train_lagrangian(
        config,
        "sac_lag",
        task,
        policy,
        critics,
        multiplier,
        improve=improve,
        components={"actor": actor, "policy_optim": policy_optim},
        shown=("lambda", "alpha"),
    )


if __name__ == "__main__":
    launch(main, Config)
