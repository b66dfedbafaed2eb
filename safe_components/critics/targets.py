"""Target networks that follow as Polyak averages or as copies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.objectives import HardUpdate, SoftUpdate
from torchrl.objectives.common import LossModule


class Polyak(SoftUpdate):  # type: ignore[misc]  # TorchRL has no types
    """Move each target network a little towards its source: ``θ' ← eps θ' + (1 - eps) θ``.

    This is TorchRL's ``SoftUpdate``, with all tensors of a network averaged in one call.

    Args:
        loss_module: loss with ``target_*_params``.
        eps: share that the target keeps at each :meth:`step`.
        tau: ``1 - eps``, in place of it.

    Example:
        >>> from torchrl.modules import Actor
        >>> from safe_components.critics import ConstrainedQEnsemble, TDLoss
        >>> loss = TDLoss(ConstrainedQEnsemble(3, 2, 1, 1), Actor(torch.nn.Linear(3, 2)))
        >>> target = Polyak(loss, eps=0.75)
        >>> bias, target_bias = (
        ...     params["ensemble", "bias_0"] for params in (loss.critic_params, loss.target_critic_params)
        ... )
        >>> _ = bias.data.fill_(1.0), target_bias.data.zero_()
        >>> target.step()
        >>> target_bias.unique()
        tensor([0.2500])
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Polyak:
        # TensorDict copies its entries regardless of what was copied already; here they are the loss's.
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.loss_module = copy.deepcopy(self.loss_module, memo)
        for name in ("_sources", "_targets"):
            setattr(twin, name, None)  # they are found anew
            followed = getattr(twin, name).select(*getattr(self, name).keys(True, True))
            setattr(twin, name, followed.lock_())
        return twin

    def _step(self, p_source: TensorDictBase, p_target: TensorDictBase) -> None:
        with torch.no_grad():
            source, target = (list(params.values(True, True)) for params in (p_source, p_target))
            torch._foreach_lerp_(target, source, 1.0 - self.eps)


class Copy(HardUpdate):  # type: ignore[misc]  # TorchRL has no types
    """Copy each source network into its target at every :meth:`step`: ``θ' ← θ``.

    This is TorchRL's ``HardUpdate`` without an interval.

    Args:
        loss_module: loss with ``target_*_params``.
    """

    def __init__(self, loss_module: LossModule) -> None:
        super().__init__(loss_module, value_network_update_interval=0)
