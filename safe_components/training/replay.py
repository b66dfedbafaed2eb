"""The replay buffer of an off-policy recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from safe_components import keys
from safe_components.critics import n_step_transitions
from safe_components.training.options import OffPolicyConfig

__all__ = ["GatherStorage", "Replay"]

# Entries of a collected step that are stored. Each entry costs time, because every batch gathers all of them.
STORED = (
    keys.OBSERVATION,
    keys.ACTION,
    keys.NEXT_OBSERVATION,
    keys.REWARD,
    keys.COST,
    keys.DONE,
    keys.TERMINATED,
    keys.TRUNCATED,
)


class Replay:
    """A buffer of transitions over ``n_step`` steps, with a second buffer of the latest states.

    Both are sampled uniformly.

    Args:
        size: number of transitions that are kept.
        batch_size: number of transitions or states in a batch.
        n_step: number of steps of a transition.
        gamma: discount within a transition.
        window: number of latest states that are kept for :meth:`sample`; None takes the states of the
            transitions.
        device: device of both buffers.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        n_step: int,
        gamma: float,
        window: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._transitions = _buffer(size, batch_size, device)
        self._recent = None if window is None else _buffer(window, batch_size, device)
        self._transitions_of = n_step_transitions(n_step, gamma)

    @classmethod
    def of(cls, config: OffPolicyConfig, window: int | None = None) -> Replay:
        """Make the buffer that a configuration asks for; its sizes and ``window`` count frames."""
        skip, critics = config.env.frame_skip, config.critics
        return cls(
            config.replay.size // skip,
            config.replay.batch_size,
            n_step=critics.n_step,
            gamma=config.discount,
            window=None if window is None or window >= config.replay.size else window // skip,
            device=config.run.device,
        )

    def extend(self, steps: TensorDictBase) -> None:
        """Add steps ``[N, T]``, which are consecutive in the last dimension."""
        transitions = self._transitions_of(steps.select(*STORED))
        if transitions is not None:
            self._transitions.extend(transitions)
        if self._recent is not None:
            self._recent.extend(steps.select(keys.OBSERVATION).reshape(-1))

    def transitions(self) -> TensorDictBase:
        """Return a batch of transitions ``[B]``."""
        return self._transitions.sample()

    def sample(self) -> tuple[TensorDictBase, TensorDictBase]:
        """Return a batch of transitions ``[B]`` and a batch of states ``[B]``."""
        transitions = self.transitions()
        states = transitions if self._recent is None else self._recent.sample()
        return transitions, states.select(keys.OBSERVATION)

    def dump(self, path: Path) -> None:
        """Write both buffers into the directory ``path``."""
        self._transitions.dumps(path / "transitions")
        if self._recent is not None:
            self._recent.dumps(path / "recent")

    def load(self, path: Path) -> None:
        """Load both buffers from a directory that :meth:`dump` wrote."""
        self._transitions.loads(path / "transitions")
        if self._recent is not None:
            self._recent.loads(path / "recent")


def _buffer(size: int, batch_size: int, device: torch.device | str) -> TensorDictReplayBuffer:
    for name, value in (("replay.size", size), ("replay.batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value} transitions, must be at least 1")
    storage = GatherStorage(size, device=torch.device(device))
    return TensorDictReplayBuffer(storage=storage, batch_size=batch_size)


class GatherStorage(LazyTensorStorage):  # type: ignore[misc]  # TorchRL has no types
    """TorchRL's ``LazyTensorStorage`` with one ``index_select`` per entry for a vector of indices.

    TorchRL first cuts every entry to its filled part and then indexes it as NumPy does, which takes several
    times as long. TorchRL still handles every index that is not a vector of integers.
    """

    def get(self, index: Any) -> Any:
        """Return the entries at ``index``."""
        vector = isinstance(index, torch.Tensor) and index.ndim == 1 and index.dtype == torch.long
        if not vector or not self.initialized:
            return super().get(index)
        index = index.to(self.device)
        return self._storage.apply(lambda entry: entry.index_select(0, index), batch_size=index.shape)
