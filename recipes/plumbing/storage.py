"""Where a replay buffer keeps its transitions."""

from __future__ import annotations

from typing import Any

import torch
from torchrl.data import LazyTensorStorage

__all__ = ["GatherStorage"]


class GatherStorage(LazyTensorStorage):
    """TorchRL's ``LazyTensorStorage``; a batch of indices costs one ``index_select`` an entry.

    TorchRL first cuts every entry to the part that is filled, and then indexes as NumPy does, which takes
    several times as long. Any other index than a vector of integers is left to it.
    """

    def get(self, index: Any) -> Any:
        """The entries at ``index``."""
        vector = isinstance(index, torch.Tensor) and index.ndim == 1 and index.dtype == torch.long
        if not vector or not self.initialized:
            return super().get(index)
        index = index.to(self.device)
        return self._storage.apply(lambda entry: entry.index_select(0, index), batch_size=index.shape)
