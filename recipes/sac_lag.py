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
    LagrangianConfig,
    OffPolicyConfig,
    Task,
    make_buffer,
    make_multiplier,
    train_off_policy,
)
from safe_components.critics import n_step_transform
from safe_components.lagrangian import SACLagLoss
from safe_components.ops import q_cost_limit
from safe_components.policies import tanh_gaussian_policy
from safe_components.training import Run, launch


@dataclasses.dataclass(frozen=True)
class Config(LagrangianConfig, OffPolicyConfig):
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
    return tanh_gaussian_policy(task.observation_dim, **task.bounds, hidden_sizes=config.hidden_sizes).to(
        task.device
    )


def main(config: Config) -> None:
    """Train."""
    task = Task(config)
    policy = make_policy(config, task)
    # Limits are set on sums over an episode, critics estimate discounted sums: docs/cost_budget.md.
    limits = q_cost_limit(config.cost_limit, config.gamma, task.episode_length)
    multiplier = make_multiplier(config)
    members = config.cal_critics if config.cal else config.cost_critics
    critics = ConstrainedCritics(
        dataclasses.replace(config, cost_critics=members),
        task,
        policy,
        reward_critics=config.reward_critics,
        # CAL is conservative in the actor's loss only: in the targets it would add up over the steps.
        cost_aggregate="mean" if config.cal else config.cost_aggregate,
        cost_std_coef=config.cost_std,
        entropy_coef=lambda: actor.alpha,
    )
    actor = SACLagLoss(
        policy,
        critics.reward,
        critics.cost,
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
    buffer = make_buffer(config)
    n_step = n_step_transform(config.n_step, config.gamma)

    def store(steps: TensorDictBase) -> None:
        buffer.extend(n_step.inv(steps).reshape(-1))

    def update() -> dict[str, torch.Tensor]:
        """One step of the critics, one of the actor and of its temperature."""
        batch = buffer.sample()
        values = critics.update(batch)
        out = actor(batch)
        policy_optim.zero_grad()
        (out["loss_actor"] + out["loss_alpha"]).backward()
        policy_optim.step()
        run.count_update()
        return values | {
            "lambda": out["lam"],
            "lambda_effective": out["lam_effective"],
            "actor_q_reward": out["q_reward"],
            "actor_q_cost": out["q_cost"],
            "q_cost_limit": limits,
            "loss_actor": out["loss_actor"],
            "alpha": out["alpha"],
            "entropy": out["entropy"],
        }

    def collected(episode_costs: torch.Tensor) -> None:
        """The multiplier follows the episodes that have just ended."""
        if len(episode_costs):
            multiplier.update(episode_costs.mean(0))

    components = {
        "policy": policy,
        "norm": task.norm,
        "actor": actor,
        "multiplier": multiplier,
        "policy_optim": policy_optim,
        "buffer": buffer,
    }
    with Run(config, "sac_lag", **critics.components, **components) as run:
        train_off_policy(
            run,
            task,
            policy,
            store=store,
            warm_up=lambda: critics.update(buffer.sample()),
            update=update,
            collected=collected,
            shown=("lambda", "alpha"),
        )


if __name__ == "__main__":
    launch(main, Config)
