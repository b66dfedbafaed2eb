"""The reward and the cost critics of an off-policy algorithm, learnt together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn

from plumbing.off_policy import OffPolicyConfig
from plumbing.targets import Polyak
from plumbing.task import Task
from safe_components.critics import ConstrainedQEnsemble, ConstrainedTDLoss
from safe_components.ops import Aggregate

__all__ = ["ConstrainedCritics"]


class ConstrainedCritics:
    """A Q ensemble of reward and costs with its loss, target network and optimiser.

    Args:
        config: sizes, discount and step sizes.
        task: sizes of the spaces.
        policy: acts in the next state of the temporal-difference targets.
        reward_critics: members for the reward; their minimum is the target.
        cost_aggregate: how the members for the costs become one.
        cost_std_coef: weight of their standard deviation where that is ``"conservative"``.
        policy_params: parameters that act in place of the policy's own, or a function returning them.
        entropy_coef: of the reward's soft target.
        smooth_action: applied to the next action of both targets.
        scoring_dtype: see `QEnsemble`.

    Attributes:
        critic: the ensemble; its ``reward()`` and ``cost()`` are critics of their own.
        td: its loss, which holds the target parameters.
        optim: its optimiser.
        components: what a checkpoint needs, by name.
    """

    def __init__(
        self,
        config: OffPolicyConfig,
        task: Task,
        policy: nn.Module,
        *,
        reward_critics: int = 2,
        cost_aggregate: Aggregate = "mean",
        cost_std_coef: float = 0.5,
        policy_params: TensorDictBase | Callable[[], TensorDictBase] | None = None,
        entropy_coef: float | Callable[[], torch.Tensor] = 0.0,
        smooth_action: Callable[[torch.Tensor], torch.Tensor] | None = None,
        scoring_dtype: torch.dtype | None = None,
    ) -> None:
        self.critic = ConstrainedQEnsemble(
            task.observation_dim,
            task.action_dim,
            num_reward_members=reward_critics,
            num_cost_members=config.cost_critics,
            num_costs=task.num_costs,
            hidden_sizes=config.hidden_sizes,
            layer_norm=config.layer_norm,
            scoring_dtype=scoring_dtype,
            **task.bounds,
        ).to(task.device)
        self.td = ConstrainedTDLoss(
            self.critic,
            policy,
            gamma=config.gamma,
            cost_aggregate=cost_aggregate,
            cost_std_coef=cost_std_coef,
            policy_params=policy_params,
            entropy_coef=entropy_coef,
            smooth_action=smooth_action,
        )
        # TorchRL wants the updater before the target parameters are first used.
        self._target = Polyak(self.td, eps=config.critic_polyak)
        self.optim = torch.optim.Adam(self.td.parameters(), lr=config.critic_lr, fused=True)
        self.components: Mapping[str, Any] = {"critic_td": self.td, "critic_optim": self.optim}

    def update(self, batch: TensorDictBase) -> dict[str, torch.Tensor]:
        """One temporal-difference step on a batch of transitions; returns its metrics."""
        out = self.td(batch)
        self.optim.zero_grad()
        out["loss_q"].backward()
        self.optim.step()
        self._target.step()
        q_mean = out["q_mean"]
        return {
            "q_reward": q_mean[0],
            "loss_q_reward": out["loss_q_reward"],
            "q_cost": q_mean[1:],
            "loss_q_cost": out["loss_q_cost"],
        }
