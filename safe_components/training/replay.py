"""The replay buffer of an off-policy recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from tensordict.utils import NestedKey
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from safe_components import keys
from safe_components.critics import n_step_transitions
from safe_components.training.options import OffPolicyConfig

__all__ = ["GatherStorage", "Replay"]

# Entries of a collected step that are stored beside the observations. Each entry costs time, because every
# batch gathers all of them.
STORED = (
    keys.ACTION,
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
        observation_keys: entries that describe a state. They are stored in their own type, so an image in
            uint8 takes one byte per number.

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
        observation_keys: Sequence[NestedKey] = (keys.OBSERVATION,),
    ) -> None:
        self._observations = tuple(observation_keys)
        following = [unravel_key(("next", key)) for key in observation_keys]
        self._stored = (*STORED, *observation_keys, *following)
        self._transitions = _buffer(size, batch_size, device)
        self._recent = None if window is None else _buffer(window, batch_size, device)
        self._transitions_of = n_step_transitions(n_step, gamma, observation_keys=observation_keys)

    @classmethod
    def of(
        cls,
        config: OffPolicyConfig,
        window: int | None = None,
        observation_keys: Sequence[NestedKey] = (keys.OBSERVATION,),
    ) -> Replay:
        """Make the buffer that a configuration asks for; its sizes and ``window`` count frames."""
        skip, critics = config.env.steps_per_action, config.critics
        return cls(
            config.replay.size // skip,
            config.replay.batch_size,
            n_step=critics.n_step,
            gamma=config.discount,
            window=None if window is None or window >= config.replay.size else window // skip,
            device=config.run.device,
            observation_keys=observation_keys,
        )

    def extend(self, steps: TensorDictBase) -> None:
        """Add steps ``[N, T]``, which are consecutive in the last dimension."""
        transitions = self._transitions_of(steps.select(*self._stored))
        if transitions is not None:
            self._transitions.extend(transitions)
        if self._recent is not None:
            self._recent.extend(steps.select(*self._observations).reshape(-1))

    def transitions(self) -> TensorDictBase:
        """Return a batch of transitions ``[B]``."""
        return self._transitions.sample()

    def sample(self) -> tuple[TensorDictBase, TensorDictBase]:
        """Return a batch of transitions ``[B]`` and a batch of states ``[B]``."""
        transitions = self.transitions()
        states = transitions if self._recent is None else self._recent.sample()
        return transitions, states.select(*self._observations)

    def state_dict(self) -> dict[str, Any]:
        """Return the stored rows of both buffers, and the steps that wait for the end of their window."""
        return {
            "transitions": _rows(self._transitions),
            "recent": None if self._recent is None else _rows(self._recent),
            "waiting": self._transitions_of.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: if the rows do not fit into the buffers.
        """
        if (state["recent"] is None) != (self._recent is None):
            raise ValueError("only one of the two runs keeps the latest states apart (replay.window)")
        _restore(self._transitions, state["transitions"])
        if self._recent is not None:
            _restore(self._recent, state["recent"])
        self._transitions_of.load_state_dict(state["waiting"])


def _rows(buffer: TensorDictReplayBuffer) -> dict[str, Any]:
    """Return the filled part of a buffer, without a copy, and the row that is written next."""
    rows = buffer._storage.get(slice(0, len(buffer))).to_dict() if len(buffer) else None
    return {"rows": rows, "next": buffer._writer._cursor}


def _restore(buffer: TensorDictReplayBuffer, state: Mapping[str, Any]) -> None:
    if state["rows"] is None:
        return
    rows = TensorDict(state["rows"]).auto_batch_size_(1)
    size = buffer._storage.max_size
    if len(rows) > size:
        raise ValueError(f"the checkpoint holds {len(rows)} rows, but the buffer has room for {size}")
    buffer.empty()
    buffer.extend(rows)
    buffer._writer._cursor = state["next"]


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
