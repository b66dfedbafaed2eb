"""The base class of environments with costs, and a check that they share."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from safe_components import keys


def check_counts(**counts: int) -> None:
    """Raise ValueError for the first count that is not an integer of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


class EnvironmentFailure(RuntimeError):
    """An environment raised an error, which is the ``__cause__``; the message says which copy and when."""


def checked_seed(seed: int) -> int:
    """Return the seed as a Python integer, or raise ValueError if it is negative or no integer."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0 or isinstance(seed, bool):
        raise ValueError(f"seed must be an integer of at least 0, or None, got {seed!r}")
    if number >= 2**63:  # PyTorch's generators hold a seed in 64 bits
        raise ValueError(f"seed must be below 2**63, got {seed!r}")
    return number


class StateError(RuntimeError):
    """The state of an environment cannot be saved or restored."""


class ConstrainedEnv(EnvBase):  # type: ignore[misc]  # torchrl has no types
    """A TorchRL environment whose steps write a reward [..., 1] and m costs [..., m], float32."""

    # Subclasses skip frames. Without this line, TorchRL would append a FrameSkipTransform and skip twice.
    _has_frame_skip = True

    def _set_specs(
        self, observation_dim: int, action_spec: TensorSpec, costs: int, dtype: torch.dtype = torch.float32
    ) -> None:
        batch, device = self.batch_size, self.device
        observation = Unbounded((*batch, observation_dim), dtype=dtype, device=device)
        self.observation_spec = Composite({keys.OBSERVATION: observation}, shape=batch)
        self.action_spec = action_spec
        self.reward_spec = Composite(
            reward=Unbounded((*batch, 1), dtype=torch.float32, device=device),
            cost=Unbounded((*batch, costs), dtype=torch.float32, device=device),
            shape=batch,
        )
        flag = Categorical(2, shape=(*batch, 1), dtype=torch.bool, device=device)
        self.done_spec = Composite(done=flag.clone(), terminated=flag.clone(), truncated=flag, shape=batch)

    @property
    def reward_key(self) -> str:
        """The key ``"reward"``; the cost is beside it in ``full_reward_spec``."""
        return "reward"

    def state_error(self) -> str | None:
        """Return why the state cannot be saved; None if it can. Call this before the first reset."""
        return f"{type(self).__name__} cannot save its state"

    def get_state(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, as nested tensors, arrays and plain values.

        The state includes the random streams, and nothing in it changes with later steps.

        Raises:
            StateError: if the state cannot be read; the message gives the reason.
        """
        raise StateError(f"{type(self).__name__} cannot save its state")

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that an environment with the same arguments returned.

        Raises:
            StateError: if the state does not fit.
        """
        raise StateError(f"{type(self).__name__} cannot restore a state")

    def _step_proc_data(self, next_tensordict_out: TensorDictBase) -> TensorDictBase:
        return next_tensordict_out  # subclasses write every entry, so TorchRL need not complete it
