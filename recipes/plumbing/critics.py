"""The reward and the cost critics of an off-policy algorithm, learnt together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.objectives import SoftUpdate

from plumbing.off_policy import OffPolicyConfig
from plumbing.task import Task
from safe_components import keys
from safe_components.critics import QEnsemble, TDLoss
from safe_components.ops import Aggregate

__all__ = ["ConstrainedCritics"]


class ConstrainedCritics:
    """Q ensembles of reward and costs with their losses, target networks and one optimiser.

    Args:
        config: sizes, discount and step sizes.
        task: sizes of the spaces.
        policy: acts in the next state of the temporal-difference targets.
        reward_critics: members of the reward's ensemble; their minimum is the target.
        cost_aggregate: how the members for the costs become one.
        cost_std_coef: weight of their standard deviation where that is ``"conservative"``.
        policy_params: parameters that act in place of the policy's own, or a function returning them.
        entropy_coef: of the reward's soft target.
        smooth_action: applied to the next action of both targets.

    Attributes:
        reward, cost: the ensembles.
        reward_td, cost_td: their losses, which hold the target parameters.
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
    ) -> None:
        ensemble = functools.partial(
            QEnsemble,
            task.observation_dim,
            task.action_dim,
            hidden_sizes=config.hidden_sizes,
            layer_norm=config.layer_norm,
            **task.bounds,
        )
        self.reward = ensemble(reward_critics).to(task.device)
        self.cost = ensemble(config.cost_critics, task.num_costs).to(task.device)
        td = functools.partial(
            TDLoss,
            policy=policy,
            gamma=config.gamma,
            policy_params=policy_params,
            smooth_action=smooth_action,
        )
        self.reward_td = td(self.reward, reward_key=keys.REWARD, aggregate="min", entropy_coef=entropy_coef)
        self.cost_td = td(self.cost, reward_key=keys.COST, aggregate=cost_aggregate, std_coef=cost_std_coef)
        # TorchRL wants the updaters before the target parameters are first used.
        losses = (self.reward_td, self.cost_td)
        self._targets = [SoftUpdate(loss, eps=config.critic_polyak) for loss in losses]
        parameters = [parameter for loss in losses for parameter in loss.parameters()]
        self._optim = torch.optim.Adam(parameters, lr=config.critic_lr, fused=True)
        self.components: Mapping[str, Any] = {
            "reward_td": self.reward_td,
            "cost_td": self.cost_td,
            "critic_optim": self._optim,
        }

    def update(self, batch: TensorDictBase) -> dict[str, torch.Tensor]:
        """One temporal-difference step on a batch of transitions; returns its metrics."""
        reward, cost = self.reward_td(batch), self.cost_td(batch)
        self._optim.zero_grad()
        (reward["loss_q"] + cost["loss_q"]).backward()
        self._optim.step()
        for target in self._targets:
            target.step()
        return {
            "q_reward": reward["q_mean"],
            "loss_q_reward": reward["loss_q"],
            "q_cost": cost["q_mean"],
            "loss_q_cost": cost["loss_q"],
        }
