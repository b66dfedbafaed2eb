"""Shared base of the actor losses: the reward's value minus the costs', weighted by the multipliers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictParams
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.func import functional_call

from safe_components import keys
from safe_components.ops import Aggregate, BaseLoss, Reduction, aggregate, q_limits, require_states


def augmented_multiplier(lam: Tensor, q_cost: Tensor, q_cost_limit: Tensor, augmentation: float) -> Tensor:
    """Compute the weight of each cost in the gradient of the augmented Lagrangian.

        λ'_i = λ_i - min(λ_i, c (d_Q,i - mean_b Q_c,i)) = [λ_i + c (mean_b Q_c,i - d_Q,i)]_+

    so that ``Σ_i λ'_i ∇ mean_b Q_c,i`` is the gradient of the augmented Lagrangian's penalty
    ``Σ_i ([λ_i + c (mean_b Q_c,i - d_Q,i)]_+^2 - λ_i^2) / (2c)``. Beyond the limit, the penalty grows at
    once, without waiting for ``λ``. Within the limit, it ends early.

    Args:
        lam: ``λ [m]``, multipliers, reward per cost.
        q_cost: ``Q_c [..., m]``, discounted cost of the policy's actions.
        q_cost_limit: ``d_Q [m]``, limits in the same unit.
        augmentation: ``c``, at least 0; 0 returns ``lam``.

    Returns:
        ``λ' [m]``, detached.

    Source: CAL (Wu et al. 2024, arXiv 2401.14758), local policy convexification. Its published code
    averages ``Q_c`` over the actions stored in the batch. Here the average is over the policy's own actions,
    because the penalty above is a function of them.

    Example:
        >>> import torch
        >>> augmented_multiplier(torch.tensor([1.0]), torch.tensor([[6.0], [8.0]]), torch.tensor([5.0]), 10.0)
        tensor([21.])
    """
    excess = q_cost.detach().flatten(0, -2).mean(0) - q_cost_limit
    return (lam + augmentation * excess).clamp_min(0.0)


class PenalizedValue(NamedTuple):
    """Scores of a batch of actions, from `LagrangianActorLoss.penalized_value`."""

    value: Tensor
    """``Q_r - Σ_i λ'_i Q_c,i``, ``[B]``"""
    scale: Tensor
    """``1 + Σ_i λ'_i``, with a price ``1 + Σ_i θ_i``, or 1 without normalization, ``[]``"""
    terms: dict[str, Tensor]
    """``q_reward []``, ``q_cost [m]``, ``lam [m]``, ``lam_effective [m]``, detached"""


class LagrangianActorLoss(BaseLoss):
    """Abstract base: holds the actor's parameters, the critic as a constant, and the multiplier.

    The caller owns the critic and the multiplier. They are not registered here, ``.to`` does not move them,
    and no gradient accumulates in them. Subclasses choose the actions.
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
    critic: nn.Module
    multiplier: Callable[[], Tensor]
    q_cost_limit: Tensor | None

    def __init__(
        self,
        policy: TensorDictModuleBase,
        critic: nn.Module,
        multiplier: Callable[[], Tensor],
        *,
        reward_aggregate: Aggregate,
        cost_aggregate: Aggregate,
        std_coef: float,
        normalize: bool,
        augmentation: float,
        q_cost_limit: float | Sequence[float] | Tensor | None,
        target_policy: bool,
        in_spreads: bool,
        reduction: Reduction,
    ) -> None:
        super().__init__(reduction)
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
        self.reward_aggregate, self.cost_aggregate, self.std_coef = reward_aggregate, cost_aggregate, std_coef
        self.normalize, self.augmentation, self.in_spreads = normalize, augmentation, in_spreads
        self.convert_to_functional(policy, "policy", create_target_params=target_policy)
        limits = None if q_cost_limit is None else q_limits(q_cost_limit, "q_cost_limit")
        if isinstance(q_cost_limit, Tensor) and q_cost_limit.ndim:
            limits = q_cost_limit.detach()  # the same memory, so that a budget's changes are seen
        self.register_buffer("q_cost_limit", limits, persistent=False)
        # Kept out of the module tree, so that an optimizer of this loss moves the actor only.
        self.__dict__["critic"] = critic
        self.__dict__["multiplier"] = multiplier

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read."""
        names = [self.tensor_keys.observation]
        return names + [key for key in self.policy.in_keys if key not in names]

    def penalized_value(self, observation: Tensor, action: Tensor) -> PenalizedValue:
        """Score ``action [..., a]`` in ``observation [..., o]``; differentiable in the action only."""
        require_states(observation.shape[:-1], "observation")
        q_reward, q_cost = self._values(observation, action)
        lam = self.multiplier().detach().to(q_cost).reshape(-1)
        if q_reward.shape[-1] != 1:
            raise ValueError(f"critic must have one reward output, it has {q_reward.shape[-1]}")
        if q_cost.shape[-1:] != lam.shape:
            raise ValueError(
                f"critic has {q_cost.shape[-1]} cost outputs, multiplier {lam.shape[0]} values: both need "
                "one per cost signal"
            )
        unit = torch.ones_like(lam)  # of a multiplier, in reward per cost
        if self.in_spreads and len(lam):
            slopes = self._slopes(observation, action, q_reward, q_cost)
            unit = torch.where(slopes[1:] > 0, slopes[0] / slopes[1:], 0.0)
        effective = lam = lam * unit
        if self.augmentation and self.q_cost_limit is not None:
            if self.q_cost_limit.shape != lam.shape:
                raise ValueError(f"q_cost_limit holds {len(self.q_cost_limit)} limits for {len(lam)} costs")
            effective = augmented_multiplier(lam, q_cost, self.q_cost_limit.to(q_cost), self.augmentation)
        terms = {
            "q_reward": q_reward.detach().mean(),
            "q_cost": q_cost.detach().flatten(0, -2).mean(0),
            "lam": lam,
            "lam_effective": effective,
        }
        value = q_reward.squeeze(-1) - q_cost @ effective
        weights = torch.where(unit > 0, effective / unit, 0.0)
        scale = 1.0 + weights.sum() if self.normalize else lam.new_ones(())
        return PenalizedValue(value, scale, terms)

    def _values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the aggregated values ``[..., 1]`` of the reward and ``[..., m]`` of the costs."""
        values = _with_constants(self.critic, observation, action)
        if isinstance(values, Tensor) or len(values) != 2:
            raise ValueError(
                "critic must return (q_reward [E_r, B, 1], q_cost [E_c, B, m]), "
                f"got {type(values).__name__} of length {len(values)}"
            )
        return (
            aggregate(values[0], self.reward_aggregate, self.std_coef),
            aggregate(values[1], self.cost_aggregate, self.std_coef),
        )

    @torch.enable_grad()
    def _slopes(self, observation: Tensor, action: Tensor, q_reward: Tensor, q_cost: Tensor) -> Tensor:
        """Return the root mean squares ``[1 + m]`` of ``‖∂Q/∂a‖`` over the states."""
        if not q_reward.requires_grad:  # outside of training
            action = action.detach().requires_grad_()
            q_reward, q_cost = self._values(observation, action)
        norms = []
        for value in torch.cat([q_reward, q_cost], -1).unbind(-1):
            slope = torch.autograd.grad(value.sum(), action, retain_graph=True)[0]
            norms.append(slope.square().sum(-1).mean().sqrt())
        return torch.stack(norms)


def _with_constants(module: nn.Module, *args: Tensor) -> Any:
    """Call ``module`` with its current parameters as constants."""
    # Every module once, under its first name: functional_call with tied weights would not restore the
    # parameters of a module that is registered twice, such as a trunk that two heads share.
    constants = {
        f"{prefix}.{name}" if prefix else name: parameter.detach()
        for prefix, part in module.named_modules()
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False)
    }
    return functional_call(module, constants, args, tie_weights=False)
