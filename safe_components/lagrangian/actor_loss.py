"""What the actor losses share: the reward's value minus the costs', weighted by the multipliers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictParams
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.func import functional_call
from torchrl.objectives.common import LossModule

from safe_components import keys
from safe_components.ops import Aggregate, aggregate


def augmented_multiplier(lam: Tensor, q_cost: Tensor, q_cost_limit: Tensor, augmentation: float) -> Tensor:
    """The weight that the augmented Lagrangian puts on each cost.

        λ'_i = λ_i - min(λ_i, c (d_Q,i - mean_b Q_c,i)) = [λ_i + c (mean_b Q_c,i - d_Q,i)]_+

    so that ``sum_i λ'_i ∇ mean_b Q_c,i`` is the gradient of the augmented Lagrangian's penalty
    ``sum_i ([λ_i + c (mean_b Q_c,i - d_Q,i)]_+^2 - λ_i^2) / (2c)``: beyond the limit the pull grows at once,
    without waiting for ``λ``; within it the pull ends early.

    Args:
        lam: ``λ [m]``, multipliers, reward per cost.
        q_cost: ``Q_c [..., m]``, discounted cost of the policy's actions.
        q_cost_limit: ``d_Q [m]``, limits in the same unit.
        augmentation: ``c``, at least 0; 0 returns ``lam``.

    Returns:
        ``[m]``, detached.

    Source: CAL (Wu et al. 2024, arXiv 2401.14758), local policy convexification. Its published code
    averages ``Q_c`` over the actions stored in the batch; here it is over the policy's own, of which
    the penalty above is a function.

    Example:
        >>> import torch
        >>> augmented_multiplier(torch.tensor([1.0]), torch.tensor([[6.0], [8.0]]), torch.tensor([5.0]), 10.0)
        tensor([21.])
    """
    excess = q_cost.detach().flatten(0, -2).mean(0) - q_cost_limit
    return (lam + augmentation * excess).clamp_min(0.0)


class PenalisedValue(NamedTuple):
    """What `LagrangianActorLoss` makes of a batch of actions."""

    value: Tensor
    """``Q_r - sum_i λ'_i Q_c,i``, ``[B]``"""
    scale: Tensor
    """``1 + sum_i λ'_i``, or 1 without normalisation, ``[]``"""
    terms: dict[str, Tensor]
    """``q_reward []``, ``q_cost [m]``, ``lam [m]``, ``lam_effective [m]``, detached"""


class LagrangianActorLoss(LossModule):
    """Abstract base: holds the actor's parameters, the critics as constants and the multiplier.

    The critics and the multiplier belong to the caller: they are neither registered here nor moved by
    ``.to``, and no gradient accumulates in them. Subclasses choose the actions.
    """

    @dataclass
    class _AcceptedKeys:
        observation: NestedKey = keys.OBSERVATION
        action: NestedKey = keys.ACTION

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    policy: TensorDictModuleBase
    policy_params: TensorDictParams
    target_policy_params: TensorDictParams
    q_cost_limit: Tensor | None

    def __init__(
        self,
        policy: TensorDictModuleBase,
        reward_critic: nn.Module,
        cost_critic: nn.Module,
        multiplier: Callable[[], Tensor],
        *,
        reward_aggregate: Aggregate,
        cost_aggregate: Aggregate,
        std_coef: float,
        normalise: bool,
        augmentation: float,
        q_cost_limit: float | Sequence[float] | Tensor | None,
        target_policy: bool,
    ) -> None:
        super().__init__()
        for how in (reward_aggregate, cost_aggregate):
            aggregate(torch.zeros(2, 1), how, std_coef)  # raises on an unknown name
        if not 0.0 <= std_coef < math.inf:
            raise ValueError(f"std_coef={std_coef} must be finite and at least 0")
        if not 0.0 <= augmentation < math.inf:
            raise ValueError(f"augmentation={augmentation} must be finite and at least 0; 0 turns it off")
        if augmentation and q_cost_limit is None:
            raise ValueError(
                f"augmentation={augmentation} needs q_cost_limit [m], the limits in the critic's unit "
                "(safe_components.ops.q_cost_limit converts)"
            )
        limit = None
        if q_cost_limit is not None:
            limit = (
                torch.as_tensor(q_cost_limit, dtype=torch.get_default_dtype()).detach().clone().reshape(-1)
            )
            if not bool(limit.isfinite().all()):
                raise ValueError(f"q_cost_limit={limit.tolist()} must be finite")
        self.reward_aggregate, self.cost_aggregate, self.std_coef = reward_aggregate, cost_aggregate, std_coef
        self.normalise, self.augmentation = normalise, augmentation
        self.convert_to_functional(policy, "policy", create_target_params=target_policy)
        self.register_buffer("q_cost_limit", limit, persistent=False)
        # Kept out of the module tree, so that an optimiser of this loss moves the actor only.
        self.__dict__["reward_critic"] = reward_critic
        self.__dict__["cost_critic"] = cost_critic
        self.__dict__["multiplier"] = multiplier

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read."""
        names = [self.tensor_keys.observation]
        return names + [key for key in self.policy.in_keys if key not in names]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """No value estimator is involved."""

    def penalised_value(self, observation: Tensor, action: Tensor) -> PenalisedValue:
        """Score ``action [..., a]`` in ``observation [..., o]``; differentiable in the action only."""
        q_reward = aggregate(
            _constant(self.reward_critic, observation, action), self.reward_aggregate, self.std_coef
        )
        q_cost = aggregate(
            _constant(self.cost_critic, observation, action), self.cost_aggregate, self.std_coef
        )
        lam = self.multiplier().detach().to(q_cost).reshape(-1)
        if q_reward.shape[-1] != 1:
            raise ValueError(f"reward_critic must have one output, it has {q_reward.shape[-1]}")
        if q_cost.shape[-1:] != lam.shape:
            raise ValueError(
                f"cost_critic has {q_cost.shape[-1]} outputs, the multiplier {lam.shape[0]} values: one "
                "per cost signal is needed in both"
            )
        effective = lam
        if self.augmentation and self.q_cost_limit is not None:
            if self.q_cost_limit.shape != lam.shape:
                raise ValueError(f"q_cost_limit holds {len(self.q_cost_limit)} limits for {len(lam)} costs")
            effective = augmented_multiplier(lam, q_cost, self.q_cost_limit.to(q_cost), self.augmentation)
        value = q_reward.squeeze(-1) - q_cost @ effective
        terms = {
            "q_reward": q_reward.detach().mean(),
            "q_cost": q_cost.detach().flatten(0, -2).mean(0),
            "lam": lam,
            "lam_effective": effective,
        }
        scale = 1.0 + effective.sum() if self.normalise else torch.ones_like(lam[0])
        return PenalisedValue(value, scale, terms)


def _constant(critic: nn.Module, observation: Tensor, action: Tensor) -> Tensor:
    """``critic(observation, action)`` with its parameters as constants, as they stand now."""
    parameters = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    return functional_call(critic, parameters, (observation, action))
