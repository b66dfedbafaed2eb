"""The state of a Python object as plain data, read and written without pickle."""

from __future__ import annotations

import copy
import enum
import functools
import logging
import pathlib
import random
import re
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import mujoco
import numpy as np
import torch

from safe_components.envs.base import StateError

__all__ = ["read_object", "write_object"]

_PLAIN = (bool, int, float, str, type(None), np.generic)
# What does not change during an episode, or belongs to code.
_CONSTANT = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    types.MappingProxyType,
    property,
    functools.partial,
    np.dtype,
    np.ufunc,
    torch.dtype,
    torch.device,
    enum.Enum,
    re.Pattern,
    pathlib.PurePath,
    logging.Logger,
)
_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)
# Arrays of a model that hold shapes and images; no simulator here changes them after compiling.
# Arrays of data whose size changes with the contacts, that hold addresses, or that only count.
_MOMENTARY: tuple[str, ...] = ("efc_", "i", "map_", "contact", "plugin", "maxuse", "solver", "warning")
_MOMENTARY += ("timer", "tree_", "body_", "dof_", "parent_", "wrap", "moment_", "ten")
_SHAPES = ("tex_", "mesh_", "skin_", "hfield_", "bvh_", "oct_", "flex", "name", "paths", "text_data")


def read_object(root: Any) -> Any:
    """Return the state of an object and of every object below it, as nested arrays and plain values.

    The state holds all attributes that are numbers, strings, arrays, tensors, random generators, MuJoCo
    models and data, containers, or further objects with attributes. Functions, classes and modules are taken
    to be constant. State that lies elsewhere is not seen: in closures, in classes, or behind a number that a
    library gave out.

    Raises:
        StateError: if an attribute is of another type; the message names its place.
    """
    return _Reader().read(root, type(root).__name__)


def write_object(root: Any, state: Any) -> None:
    """Bring an object to the state that :func:`read_object` returned for another, made alike and reset.

    Objects stay the same and are changed in place, so no code is chosen by the state.

    Raises:
        StateError: if the objects below ``root`` differ from those of the state.
    """
    try:
        _Writer().write(root, state, type(root).__name__)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise StateError(f"the state does not fit {type(root).__name__}: {error!r}") from error


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, _CONSTANT)


def _is_drawing(value: Any) -> bool:
    """Return whether a value is one of MuJoCo's structures for drawing."""
    return type(value).__module__.partition(".")[0] == "mujoco"


class _Reader:
    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is only unique while its object lives

    def read(self, value: Any, place: str) -> Any:
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            return value
        if isinstance(value, frozenset):
            return {"frozenset": self._items(value, place)}
        if isinstance(value, (slice, range)):
            ends = [self.read(x, place) for x in (value.start, value.stop, value.step)]
            return {type(value).__name__: ends}
        if isinstance(value, bytes):
            return {"bytes": list(value)}
        if isinstance(value, tuple):
            return {"tuple": [self.read(item, f"{place}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, _CONSTANT):
            return {"constant": type(value).__name__}
        if id(value) in self._known:
            return {"same": self._known[id(value)]}
        number = self._known[id(value)] = len(self._alive)
        self._alive.append(value)
        return {"number": number, **self._content(value, place)}

    def _content(self, value: Any, place: str) -> dict[str, Any]:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"array": np.array(value)}
        if isinstance(value, np.ndarray):
            return {"items": self._items(value.ravel().tolist(), place), "kind": "objects"}
        if isinstance(value, torch.Tensor):
            return {"tensor": value.detach().clone()}
        if isinstance(value, np.random.Generator):
            return {"generator": copy.deepcopy(value.bit_generator.state)}
        if isinstance(value, np.random.RandomState):
            return {"random_state": copy.deepcopy(value.get_state(legacy=False))}
        if isinstance(value, random.Random):
            return {"random": value.getstate()}
        if isinstance(value, torch.Generator):
            return {"torch_generator": value.get_state()}
        if isinstance(value, mujoco.MjModel):
            return {"model": {name: np.array(array) for name, array in _arrays(value).items()}}
        if isinstance(value, mujoco.MjData):
            model = value.model
            packed = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
            mujoco.mj_getState(model, value, packed, _INTEGRATION)
            return {"data": packed, "arrays": {k: np.array(a) for k, a in _arrays(value).items()}}
        if isinstance(value, dict):
            items = [[self.read(k, place), self.read(v, f"{place}[{k!r}]")] for k, v in value.items()]
            return {"dict": items}
        if isinstance(value, (list, deque, set)):
            kind = next(kind for kind in (list, deque, set) if isinstance(value, kind))
            return {"items": self._items(value, place), "kind": kind.__name__}
        if _is_drawing(value):
            return {"constant": type(value).__name__}
        if _is_object(value):
            fields = {name: self.read(item, f"{place}.{name}") for name, item in vars(value).items()}
            return {"object": type(value).__qualname__, "fields": fields}
        raise StateError(f"{place} is a {type(value).__name__}, which cannot be saved")

    def _items(self, values: Iterable[Any], place: str) -> list[Any]:
        return [self.read(item, f"{place}[{i}]") for i, item in enumerate(values)]


class _Writer:
    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._taken: dict[int, Any] = {}  # an id is only unique while its object lives

    def write(self, old: Any, state: Any, place: str) -> Any:
        """Return the value of ``state``; reuse ``old`` wherever it has the same form."""
        if not isinstance(state, dict):
            return state
        if "same" in state:
            return self._made[state["same"]]
        if "frozenset" in state:
            return frozenset(self.write(None, item, place) for item in state["frozenset"])
        if "slice" in state or "range" in state:
            ((kind, ends),) = state.items()
            return {"slice": slice, "range": range}[kind](*(self.write(None, x, place) for x in ends))
        if "bytes" in state:
            return bytes(state["bytes"])
        if "tuple" in state:
            olds = old if isinstance(old, tuple) else ()
            items = [self.write(_at(olds, i), item, place) for i, item in enumerate(state["tuple"])]
            return old._make(items) if hasattr(old, "_make") else tuple(items)
        if "constant" in state:
            if type(old).__name__ != state["constant"]:
                raise StateError(f"{place} was a {state['constant']}, but is a {type(old).__name__}")
            return old
        fresh = id(old) not in self._taken  # two places may share a value here that they did not share there
        self._taken[id(old)] = old
        made = self._new(old if fresh else None, state, place)
        self._made[state["number"]] = made
        self._fill(made, old, state, place)
        return made

    def _new(self, old: Any, state: dict[str, Any], place: str) -> Any:
        """Return the object to fill: ``old`` if it has the form of the state, otherwise a new container."""
        if "array" in state:
            value = state["array"]
            like = isinstance(old, np.ndarray) and old.flags.writeable
            like = like and (old.shape, old.dtype) == (value.shape, value.dtype)
            return old if like else np.array(value)
        if "tensor" in state:
            like = isinstance(old, torch.Tensor) and old.shape == state["tensor"].shape
            return old if like else state["tensor"].clone()
        if "dict" in state:
            return old if isinstance(old, dict) else {}
        if state.get("kind") in ("list", "deque", "set"):
            kind = {"list": list, "deque": deque, "set": set}[state["kind"]]
            return old if isinstance(old, kind) else kind()
        if old is None and "generator" in state:  # Gymnasium makes it at the first draw
            return np.random.Generator(_BIT_GENERATORS[state["generator"]["bit_generator"]]())
        name = state.get("object")
        if old is None or (name is not None and type(old).__qualname__ != name):
            raise StateError(
                f"{place} was a {name or 'part'} of the simulator, but is a {type(old).__name__}"
            )
        return old

    def _fill(self, made: Any, old: Any, state: dict[str, Any], place: str) -> None:
        if "array" in state:
            made[...] = state["array"]
        elif "tensor" in state:
            with torch.no_grad():
                made.copy_(state["tensor"])
        elif "generator" in state:
            made.bit_generator.state = state["generator"]
        elif "random_state" in state:
            made.set_state(state["random_state"])
        elif "random" in state:
            made.setstate(state["random"])
        elif "torch_generator" in state:
            made.set_state(state["torch_generator"])
        elif "model" in state:
            _copy(_arrays(made), state["model"], place)
        elif "data" in state:
            self._fill_data(made, state, place)
        elif "dict" in state:
            olds = dict(old) if isinstance(old, dict) else {}
            items = [(self.write(None, k, place), v) for k, v in state["dict"]]
            new = {k: self.write(olds.get(k), v, f"{place}[{k!r}]") for k, v in items}
            made.clear()
            made.update(new)
        elif "items" in state:
            before = list(old.ravel()) if isinstance(old, np.ndarray) else list(old or ())
            new_items = [self.write(_at(before, i), v, f"{place}[{i}]") for i, v in enumerate(state["items"])]
            if isinstance(made, np.ndarray):
                made.reshape(-1)[:] = new_items
            else:
                made.clear()
                made.update(new_items) if isinstance(made, set) else made.extend(new_items)
        elif "object" in state:
            attributes = vars(made)
            for name in [name for name in attributes if name not in state["fields"]]:
                del attributes[name]
            for name, item in state["fields"].items():
                attributes[name] = self.write(attributes.get(name), item, f"{place}.{name}")

    def _fill_data(self, data: Any, state: dict[str, Any], place: str) -> None:
        # The first write determines what is computed from the state, such as contacts. That computation moves
        # the solver's starting point, and some tasks read values that lag behind, so both are written again.
        model = data.model
        mujoco.mj_setState(model, data, state["data"], _INTEGRATION)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, state["data"], _INTEGRATION)
        _copy(_arrays(data), state["arrays"], place)


def _at(values: Any, index: int) -> Any:
    return values[index] if index < len(values) else None


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if not name.startswith(("_", *_SHAPES)))


def _arrays(struct: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a MuJoCo model or its data whose sizes follow from the model."""
    found = {}
    kind: Any = type(struct)
    for name in _names(kind):
        value = getattr(struct, name, None)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.flags.writeable:
            found[name] = value
    if isinstance(struct, mujoco.MjData):
        return {name: array for name, array in found.items() if not name.startswith(_MOMENTARY)}
    return found


def _copy(arrays: dict[str, np.ndarray], values: dict[str, np.ndarray], place: str) -> None:
    for name, value in values.items():
        if name not in arrays or arrays[name].shape != value.shape:
            raise StateError(f"{place}.{name} had shape {value.shape}, but the new simulator's differs")
        arrays[name][...] = value
