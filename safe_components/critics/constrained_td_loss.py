"""The temporal-difference loss of reward and cost critics that are one ensemble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from safe_components import keys
from safe_components.critics.constrained import ConstrainedQEnsemble
from safe_components.critics.td_loss import TDLoss
from safe_components.ops import Aggregate, aggregate, swapped


class ConstrainedTDLoss(TDLoss):
    """`TDLoss` for reward and costs at once: one draw of the next action, one pass through each network.

        min_Q  mean_b [ sum_{e in R} d(Q_e(s_b, a_b), y_r,b) + sum_{e in C} sum_i d(Q_e(s_b, a_b)_i, y_i,b) ]
        y_r = r + γ^n (1 - terminated) mean_j [ agg_{e in R} Q'_e(s', a'_j) - α log π(a'_j|s') ]
        y_i = c_i + γ^n (1 - terminated) mean_j [ agg_{e in C} Q'_e(s', a'_j)_i ],           a'_j ~ policy(s')

    over the members ``R`` for the reward and ``C`` for the costs: the losses and gradients of two `TDLoss` on
    these parts that see the same next actions.

    Reads what `TDLoss` reads and ``("next", "cost") [B, m]``; writes ``td_error [B]``, the mean of
    ``|Q - y|`` over all members and what they estimate. Returns a TensorDict without batch size; a signal is
    the reward, then each cost:

    | entry | shape | |
    |---|---|---|
    | ``loss_q`` | [] | to be minimised |
    | ``loss_q_reward``, ``loss_q_cost`` | [] | its two parts, detached |
    | ``td_error`` | [1 + m] | mean absolute error of each signal, detached |
    | ``q_mean`` | [1 + m] | mean value of the batch's actions, detached |
    | ``target_mean`` | [1 + m] | mean target, detached |

    Args:
        critic: the ensemble.
        policy: TensorDict module that acts in the next state.
        gamma: discount, in ``[0, 1]``.
        reward_aggregate: how the target members for the reward become one.
        cost_aggregate: the same for the costs.
        cost_std_coef: weight of the standard deviation in ``"conservative"``.
        bootstrap_terminal: True adds the next value of the reward after termination as well.
        bootstrap_terminal_cost: the same for the costs, as CVPO's authors do, so that ending an episode early
            does not look safe.
        num_action_samples: next actions per state, at least 1.
        policy_params: see `TDLoss`.
        entropy_coef: ``α`` of the reward's soft target, or a function returning it; 0 for none.
        loss_function: ``d``: ``"l2"``, ``"l1"`` or ``"smooth_l1"``.
        smooth_action: see `TDLoss`.

    Raises:
        ValueError: if a setting is out of range; in ``forward``, if the shapes do not fit together.
        KeyError: in ``forward``, if an entry is missing.

    Source: as `TDLoss`.

    Example:
        >>> import torch
        >>> from torchrl.modules import Actor
        >>> from torchrl.objectives import SoftUpdate
        >>> critic = ConstrainedQEnsemble(3, 2, num_reward_members=2, num_cost_members=1)
        >>> loss = ConstrainedTDLoss(critic, Actor(torch.nn.Linear(3, 2)))
        >>> target_updater = SoftUpdate(loss, tau=0.005)
        >>> following = TensorDict(
        ...     observation=torch.randn(4, 3),
        ...     reward=torch.ones(4, 1),
        ...     cost=torch.full((4, 1), 2.0),
        ...     terminated=torch.ones(4, 1, dtype=torch.bool),
        ...     batch_size=4,
        ... )
        >>> observation, action = torch.randn(4, 3), torch.randn(4, 2)
        >>> batch = TensorDict(observation=observation, action=action, next=following, batch_size=4)
        >>> loss(batch)["target_mean"]  # terminated: nothing but reward and cost
        tensor([1., 2.])
    """

    @dataclass
    class _AcceptedKeys(TDLoss._AcceptedKeys):
        cost: NestedKey = keys.COST

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    critic: ConstrainedQEnsemble

    def __init__(
        self,
        critic: ConstrainedQEnsemble,
        policy: nn.Module,
        *,
        gamma: float = 0.99,
        reward_aggregate: Aggregate = "min",
        cost_aggregate: Aggregate = "mean",
        cost_std_coef: float = 0.5,
        bootstrap_terminal: bool = False,
        bootstrap_terminal_cost: bool = False,
        num_action_samples: int = 1,
        policy_params: TensorDictBase | TensorDictParams | Callable[[], TensorDictBase] | None = None,
        entropy_coef: float | Callable[[], Tensor] = 0.0,
        loss_function: str = "l2",
        smooth_action: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(
            critic,
            policy,
            gamma=gamma,
            aggregate=cost_aggregate,
            std_coef=cost_std_coef,
            bootstrap_terminal=bootstrap_terminal,
            num_action_samples=num_action_samples,
            policy_params=policy_params,
            entropy_coef=entropy_coef,
            loss_function=loss_function,
            smooth_action=smooth_action,
        )
        aggregate(torch.zeros(2, 1), reward_aggregate, cost_std_coef)  # raises on an unknown name
        self.reward_aggregate = reward_aggregate
        self.bootstrap_terminal_cost = bootstrap_terminal_cost

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read in every call; the optional ones are not among them."""
        return [*super().in_keys, self.tensor_keys.cost]

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries returned."""
        return ["loss_q", "loss_q_reward", "loss_q_cost", "td_error", "q_mean", "target_mean"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss of a batch; see the class for the entries read and returned."""
        names = self.tensor_keys
        with swapped(self.critic, self.critic_params):
            q = self.critic(tensordict[names.observation], tensordict[names.action])
        target = self.target(tensordict)
        joined = self.critic.join(target[..., :1], target[..., 1:], q)
        loss = self._mean_distance(tensordict, q, joined)
        reward_loss, cost_loss = (part.sum() for part in self.critic.split(loss))
        # Outputs that mean nothing deviate by nothing.
        deviation = (q.detach() - joined).abs()
        reward, cost = self.critic.split(q)
        tensordict.set(names.priority, deviation.sum((0, -1)) / (len(reward) + len(cost) * cost.shape[-1]))

        def signals(value: Tensor) -> Tensor:
            """Mean over transitions and members ``[1 + m]``."""
            parts = self.critic.split(value.flatten(1, -2).mean(1))
            return torch.cat([part.mean(0) for part in parts])

        return TensorDict(
            {
                "loss_q": reward_loss + cost_loss,
                "loss_q_reward": reward_loss.detach(),
                "loss_q_cost": cost_loss.detach(),
                "td_error": signals(deviation),
                "q_mean": signals(q.detach()),
                "target_mean": target.flatten(0, -2).mean(0),
            },
            [],
        )

    @torch.no_grad()
    def target(self, tensordict: TensorDictBase) -> Tensor:
        """``y [..., 1 + m]`` of a batch, of the reward and then the costs, discounted."""
        q, log_prob = self._next_q(tensordict["next"])
        q_reward, q_cost = self.critic.split(q)
        value = self._soften(aggregate(q_reward, self.reward_aggregate, self.std_coef), log_prob)
        reward = self._backup(tensordict, self.tensor_keys.reward, value, self.bootstrap_terminal)
        value = aggregate(q_cost, self.aggregate, self.std_coef)
        cost = self._backup(tensordict, self.tensor_keys.cost, value, self.bootstrap_terminal_cost)
        return torch.cat([reward, cost], -1)
