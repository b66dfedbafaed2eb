"""Gymnasium's spaces as TorchRL specs, with observations and actions as vectors of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torchrl.data import Bounded, OneHot, TensorSpec, Unbounded


def observation_reader(space: spaces.Space[Any]) -> Callable[[Any], Any] | None:
    """Return a function that flattens an observation into one vector, or None if it already is a vector.

    Raises:
        ValueError: if the vector has no fixed length.
    """
    if isinstance(space, spaces.Box):
        return None if len(space.shape) == 1 else np.ravel
    if not space.is_np_flattenable:
        raise ValueError(
            f"observation space {space} cannot be flattened into one vector of fixed length; "
            "wrap the environment with gymnasium.wrappers.TransformObservation"
        )
    return lambda x: spaces.flatten(space, x)


def action_reader(
    space: spaces.Space[Any], batch: torch.Size, device: torch.device
) -> tuple[TensorSpec, Callable[[np.ndarray], Any]]:
    """Return the TorchRL spec of an action space, and a function from [N, a] float32 to N actions to execute.

    Raises:
        ValueError: if the space is neither a Box nor a Discrete space.
    """
    if isinstance(space, spaces.Discrete):
        n, start = int(space.n), int(space.start)
        spec = OneHot(n, shape=(*batch, n), dtype=torch.float32, device=device)
        return spec, lambda x: (_finite_action(x).argmax(-1) + start).tolist()
    if not isinstance(space, spaces.Box):
        raise ValueError(f"action space {space} is not supported: use a Box or a Discrete space")
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    shape, dtype = (-1, *space.shape), space.dtype
    bounds = [torch.as_tensor(b, dtype=torch.float32, device=device).expand(*batch, -1) for b in (low, high)]
    spec = (
        Bounded(*bounds, shape=(*batch, low.size), dtype=torch.float32, device=device)
        if np.isfinite(low).all() and np.isfinite(high).all()
        else Unbounded((*batch, low.size), dtype=torch.float32, device=device)
    )
    return spec, lambda x: np.clip(_finite_action(x), low, high).astype(dtype, copy=False).reshape(shape)


def _finite_action(actions: np.ndarray) -> np.ndarray:
    if not np.isfinite(actions).all():
        row = int(np.argwhere(~np.isfinite(actions))[0, 0])
        raise FloatingPointError(f"action of environment {row} is not finite: {actions[row].tolist()}")
    return actions
