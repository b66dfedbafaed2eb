"""A policy for use outside of training: from raw observations to actions inside the bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type
from torch import Tensor, nn

from safe_components import keys
from safe_components.ops import action_bounds


class DeployedPolicy(nn.Module):
    """A trained policy together with the scaling of its observations.

        a = clip(π((s - loc) / scale), low, high)

    ``π`` is the policy's deterministic action or a sample, ``s [..., o]`` is the observation in the units of
    the environment, and ``a [..., a]`` is an action in its units. Without the scaling, the policy would act
    on numbers it was never trained on.

    Args:
        policy: policy that reads scaled observations.
        loc: ``[o]``, mean of the observations, as TorchRL's ``ObservationNorm`` holds it.
        scale: ``[o]``, standard deviation of the observations.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        deterministic: whether to take the deterministic action (the mean, or the most probable one) instead
            of a sample. TorchRL's exploration type is ignored.

    Raises:
        ValueError: if sizes do not match; in a call, unless the observation is ``[..., o]``.
        FloatingPointError: in a call, if an observation or action is not finite. A compiled or exported
            module makes no such check.

    Example:
        >>> from safe_components.policies import deterministic_policy
        >>> trained = deterministic_policy(2, [-1.0], [1.0], hidden_sizes=(8,))
        >>> policy = DeployedPolicy(trained, torch.zeros(2), torch.ones(2), [-1.0], [1.0])
        >>> policy(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        policy: TensorDictModuleBase,
        loc: Tensor,
        scale: Tensor,
        action_low: Sequence[float] | Tensor,
        action_high: Sequence[float] | Tensor,
        *,
        deterministic: bool = True,
    ) -> None:
        super().__init__()
        if loc.ndim != 1 or loc.shape != scale.shape:
            raise ValueError(f"loc and scale must both be [o], got {tuple(loc.shape)}, {tuple(scale.shape)}")
        if not bool((loc.isfinite() & scale.isfinite() & (scale > 0)).all()):
            raise ValueError(f"loc must be finite and scale positive, got {loc.tolist()}, {scale.tolist()}")
        low, high = action_bounds(action_low, action_high)
        self.policy, self.deterministic = policy, deterministic
        for name, value in (("loc", loc), ("scale", scale), ("low", low), ("high", high)):
            self.register_buffer(name, value.detach().clone())

    def forward(self, observation: Tensor) -> Tensor:
        """Map raw observations ``[..., o]`` to actions ``[..., a]``."""
        size = self.loc.shape[0]
        if observation.ndim == 0 or observation.shape[-1] != size:
            raise ValueError(
                f"the observation has shape {list(observation.shape)}, but this policy takes [..., {size}]"
            )
        scaled = (observation.to(self.loc.dtype) - self.loc) / self.scale
        data = TensorDict({self.policy.in_keys[0]: scaled}, scaled.shape[:-1])
        how = InteractionType.DETERMINISTIC if self.deterministic else InteractionType.RANDOM
        with set_interaction_type(how):
            action: Tensor = self.policy(data)[keys.ACTION]
        if not torch.compiler.is_compiling():
            _require_finite(scaled, "observation")
            _require_finite(action, "action")
        return action.clamp(self.low, self.high)


def _require_finite(value: Tensor, name: str) -> None:
    finite = value.isfinite()
    if not bool(finite.all()):
        raise FloatingPointError(
            f"the policy's {name} holds {int((~finite).sum())} values of {value.numel()} that are not finite"
        )
