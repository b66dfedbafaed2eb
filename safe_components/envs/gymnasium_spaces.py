"""Gymnasium's spaces as TorchRL specs, with observations and actions as vectors of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tensordict.utils import NestedKey
from torchrl.data import Bounded, MultiOneHot, OneHot, TensorSpec, Unbounded

from safe_components import keys

NUMBERS = frozenset("biuf")  # the kinds of NumPy dtypes that are real numbers

# Policies square the range of an action, so the square must neither overflow nor vanish in float32.
_LEAST_RANGE, _LARGEST_RANGE = 1e-18, 1e18


class ObservationReader:
    """Turn an observation into one vector of numbers.

    Args:
        space: space of the observation. Composite spaces are flattened as by ``gymnasium.spaces.flatten``.

    Attributes:
        size: length o of the vector.

    Raises:
        ValueError: if the vector has no fixed length.

    Example:
        >>> read = ObservationReader(spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "late": spaces.Discrete(2)}))
        >>> read({"x": [0.5, 0.25], "late": 1}).tolist()
        [0.0, 1.0, 0.5, 0.25]
        >>> read({"x": [0.5], "late": 1})
        Traceback (most recent call last):
        ValueError: observation['x'] has shape (1,), must have (2,)
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        if not space.is_np_flattenable:
            raise ValueError(
                f"observation space {space} cannot be flattened into one vector of fixed length; "
                "wrap the environment with gymnasium.wrappers.TransformObservation"
            )
        self.space, self.size = space, int(spaces.flatdim(space))
        if self.size == 0:
            raise ValueError(f"observation space {space} is empty: a policy needs at least one number")
        self.is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1

    def __call__(self, observation: Any) -> np.ndarray:
        """Return the vector [o].

        Raises:
            ValueError: if the observation does not have the structure and shapes of the space.
        """
        return _flat(self.space, observation, "observation")


class Entry(NamedTuple):
    """A part of an observation: its key, its place in the vector of all parts, and its spec."""

    key: NestedKey
    start: int
    stop: int
    spec: TensorSpec


def observation_entries(space: spaces.Space[Any]) -> list[Entry]:
    """Return the parts of an observation, in the order in which `ObservationReader` joins them.

    A dictionary gives an entry per key, any other space a single one called ``observation``. A Box of uint8
    keeps its type and its shape, such as an image. Any other Box keeps its shape in float32. What is no Box
    is a vector in float32.

    Example:
        >>> camera = spaces.Box(0, 255, (4, 4, 3), np.uint8)
        >>> for entry in observation_entries(spaces.Dict({"camera": camera, "late": spaces.Discrete(2)})):
        ...     print(entry.key, entry.stop - entry.start, tuple(entry.spec.shape), entry.spec.dtype)
        camera 48 (4, 4, 3) torch.uint8
        late 2 (2,) torch.float32
    """
    found = list[Entry]()

    def add(part: spaces.Space[Any], path: tuple[str, ...]) -> None:
        if isinstance(part, spaces.Dict):
            for name, inner in part.items():
                add(inner, (*path, name))
            return
        start = found[-1].stop if found else 0
        stop = start + int(spaces.flatdim(part))
        shape = part.shape if isinstance(part, spaces.Box) and part.shape else (stop - start,)
        spec: TensorSpec = Unbounded(shape, dtype=torch.float32)
        if isinstance(part, spaces.Box) and part.dtype == np.uint8:
            spec = Bounded(0, 255, shape, dtype=torch.uint8)
        key: NestedKey = path[0] if len(path) == 1 else path or keys.OBSERVATION
        found.append(Entry(key, start, stop, spec))

    add(space, ())
    return found


def _flat(space: spaces.Space[Any], x: Any, name: str) -> np.ndarray:
    if isinstance(space, spaces.Dict):
        if not isinstance(x, Mapping) or x.keys() != space.keys():
            found = f"the keys {sorted(x)}" if isinstance(x, Mapping) else described(x)
            raise ValueError(f"{name} is {found}, must be a dictionary with the keys {sorted(space.keys())}")
        return np.concatenate([_flat(part, x[key], f"{name}[{key!r}]") for key, part in space.items()])
    if isinstance(space, spaces.Tuple):
        if not isinstance(x, tuple | list) or len(x) != len(space.spaces):
            raise ValueError(f"{name} is {described(x)}, must be a tuple of {len(space.spaces)}")
        parts = enumerate(zip(space.spaces, x, strict=True))
        return np.concatenate([_flat(part, value, f"{name}[{i}]") for i, (part, value) in parts])
    if isinstance(space, spaces.Box):
        array = as_numbers(x, name)
        if array.shape != space.shape:
            raise ValueError(f"{name} has shape {array.shape}, must have {space.shape}")
        return array.ravel()
    if not space.contains(x):
        raise ValueError(f"{name} is {described(x)}, which is not in {space}")
    return np.asarray(spaces.flatten(space, x))


def as_numbers(x: Any, name: str) -> np.ndarray:
    """Return numbers, an array or a tensor as an array.

    Raises:
        ValueError: if ``x`` is not made of real numbers of one shape.
    """
    try:
        array = x.detach().cpu().numpy() if torch.is_tensor(x) else np.asarray(x)
    except (ValueError, TypeError):  # lists of different lengths, or a dtype that NumPy lacks
        array = np.asarray(None)
    if array.dtype.kind not in NUMBERS:
        raise ValueError(f"{name} is {described(x)}, must be real numbers of one shape")
    return array


def described(x: Any) -> str:
    """Return a value and its type as part of an error message."""
    text = repr(x)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(x).__name__})"


class ActionReader:
    """Turn actions as TorchRL holds them into those that Gymnasium environments execute.

    A Discrete action is held as a one-hot vector, and a MultiDiscrete action as one such vector for each of
    its numbers, side by side.

    Args:
        space: action space of one environment.

    Attributes:
        size: length a of an action as TorchRL holds it.

    Raises:
        ValueError: if the space is no Box, Discrete or MultiDiscrete space, or if a dimension of a Box has no
            range that policies can compute with.

    Example:
        >>> read = ActionReader(spaces.Box(0, 3, (2,), np.int64))
        >>> read(np.array([[0.4, 9.0], [1.6, 2.0]], np.float32))
        array([[0, 3],
               [2, 2]])
        >>> read = ActionReader(spaces.MultiDiscrete([2, 3]))
        >>> read(np.array([[0.0, 1.0, 1.0, 0.0, 0.0]], np.float32))
        array([[1, 0]])
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        if isinstance(space, spaces.Box):
            _check_range(space)
        elif not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            raise ValueError(
                f"action space {space} is not supported: use a Box, Discrete or MultiDiscrete space; "
                "gymnasium.wrappers.TransformAction(env, f, space) makes one of another"
            )
        self.space = space
        # The numbers of alternatives of a MultiDiscrete space.
        self._sizes = space.nvec.ravel().tolist() if isinstance(space, spaces.MultiDiscrete) else []
        self.size = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))
        self.size = sum(self._sizes) if self._sizes else self.size
        if self.size == 0:
            raise ValueError(f"action space {space} is empty: a policy needs at least one number to choose")

    def spec(self, batch: torch.Size, device: torch.device | None) -> TensorSpec:
        """Return the TorchRL spec for actions [*batch, a], float32."""
        shape: torch.Size = torch.Size((*batch, self.size))
        options: dict[str, Any] = {"dtype": torch.float32, "device": device}
        if isinstance(self.space, spaces.Discrete):
            return OneHot(self.size, shape=shape, **options)
        if self._sizes:
            return MultiOneHot(self._sizes, shape=shape, **options)
        assert isinstance(self.space, spaces.Box)
        bounds = (np.reshape(bound, -1) for bound in (self.space.low, self.space.high))
        low, high = (torch.as_tensor(bound, **options).expand(shape) for bound in bounds)
        return Bounded(low, high, shape=shape, **options)

    def __call__(self, actions: np.ndarray) -> Any:
        """Return the N actions to execute for finite ``actions`` [N, a].

        A Box's action is clipped to its bounds, and rounded if its dtype is an integer. A Discrete action is
        the argmax, and a MultiDiscrete one is the argmax of each part.
        """
        space = self.space
        if isinstance(space, spaces.MultiDiscrete):
            parts = np.split(actions, np.cumsum(self._sizes)[:-1], axis=-1)
            chosen = np.stack([part.argmax(-1) for part in parts], -1).reshape(-1, *space.shape)
            return (chosen + space.start).astype(space.dtype, copy=False)
        if isinstance(space, spaces.Discrete):
            return (actions.argmax(-1) + int(space.start)).tolist()
        assert isinstance(space, spaces.Box)
        clipped = np.clip(actions.reshape(-1, *space.shape), space.low, space.high)
        if space.dtype.kind in "iu":
            clipped = np.rint(clipped)
        return clipped.astype(space.dtype, copy=False)


def _check_range(space: spaces.Box) -> None:
    with np.errstate(all="ignore"):  # bounds that overflow are what is looked for
        low, high = (np.reshape(b, -1).astype(np.float32) for b in (space.low, space.high))
        width = high - low
    fits = (width >= _LEAST_RANGE) & (width <= _LARGEST_RANGE)  # false for NaN
    if not fits.all():
        i = int(np.flatnonzero(~fits)[0])
        raise ValueError(
            f"dimension {i} of the action space ranges from {low[i]:g} to {high[i]:g}, but policies need "
            f"a range high - low from {_LEAST_RANGE:g} to {_LARGEST_RANGE:g} in float32. Wrap the "
            "environment with gymnasium.wrappers.TransformAction(env, f, Box(-1, 1, shape)), where f maps "
            "[-1, 1] to the actions that are useful"
        )
