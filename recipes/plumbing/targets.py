"""Target networks that follow by Polyak averages, or as copies."""

from __future__ import annotations

from typing import Any

import torch
from torchrl.objectives import HardUpdate, SoftUpdate

__all__ = ["Copy", "Polyak"]


class Polyak(SoftUpdate):
    """TorchRL's ``SoftUpdate`` with all tensors of a network averaged in one call."""

    def _step(self, p_source: Any, p_target: Any) -> None:
        with torch.no_grad():
            source, target = (list(params.values(True, True)) for params in (p_source, p_target))
            torch._foreach_lerp_(target, source, 1.0 - self.eps)


class Copy(HardUpdate):
    """TorchRL's ``HardUpdate`` that copies the network at every step."""

    def __init__(self, loss_module: Any) -> None:
        super().__init__(loss_module, value_network_update_interval=0)
