"""A tree of tensors and plain values in one file, which holds data and no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["read_state", "write_state"]

# Names of the safetensors format.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PLAIN = (bool, int, float, str, type(None))


def write_state(path: Path, state: Any) -> None:
    """Write a tree of tensors and plain values.

    The file has the format ``safetensors``: the length of a header, the header in JSON, and the bytes of the
    tensors. The header's metadata holds the tree, in which each tensor is replaced by its name. Reading the
    file therefore cannot run code, whoever wrote it.

    Args:
        path: file to write.
        state: mappings, lists and tuples of tensors, NumPy arrays and numbers, Python numbers, strings and
            None.

    Raises:
        TypeError: if the tree holds anything else; the message names the place and the type.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> write_state(path, {"step": 3, "weights": (torch.ones(2), [None, 1.5])})
        >>> read_state(path)
        {'step': 3, 'weights': (tensor([1., 1.]), [None, 1.5])}
    """
    tensors: list[torch.Tensor] = []
    tree = _encode(state, tensors, "")
    names = {str(index): tensor for index, tensor in enumerate(tensors)}
    # Wide numbers come first, so each tensor begins at a multiple of its own width.
    order = sorted(names, key=lambda name: -names[name].element_size())
    header: dict[str, Any] = {"__metadata__": {"tree": json.dumps(tree, separators=(",", ":"))}}
    position = 0
    for name in order:
        tensor = names[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            rows = names[name].detach().cpu().contiguous().reshape(-1)
            if rows.stride(0) != 1:  # a single number counts as contiguous with any stride
                rows = rows.clone(memory_format=torch.preserve_format).as_strided((len(rows),), (1,))
            file.write(rows.view(torch.uint8).numpy().data)


def read_state(path: Path) -> Any:
    """Return the tree that :func:`write_state` wrote, with its tensors on the CPU.

    Raises:
        ValueError: if the file has another format or is damaged.
        OSError: if the file cannot be read.
    """
    content = bytearray(path.read_bytes())
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length].decode())
        tree = json.loads(header.pop("__metadata__")["tree"])
        tensors = {name: _tensor(content, 8 + length, record) for name, record in header.items()}
        return _decode(tree, tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} holds no state of a run, or is damaged ({error!r})") from None


def _tensor(content: bytearray, start: int, record: Mapping[str, Any]) -> torch.Tensor:
    dtype, shape = _DTYPES[record["dtype"]], tuple(int(size) for size in record["shape"])
    begin, end = record["data_offsets"]
    size = dtype.itemsize
    for length in shape:
        size *= length
    if min((begin, *shape)) < 0 or end - begin != size or start + end > len(content):
        raise ValueError(f"a tensor of shape {list(shape)} does not lie in the file")
    if not size:
        return torch.empty(shape, dtype=dtype)
    # The copy detaches the tensor from the content of the whole file.
    rows = torch.frombuffer(content, dtype=torch.uint8, count=size, offset=start + begin).clone()
    return rows.view(dtype).reshape(shape)


def _encode(value: Any, tensors: list[torch.Tensor], place: str) -> Any:
    """Return a value as JSON: plain values and lists as they are, anything else as ``{kind: content}``."""
    if isinstance(value, np.generic):
        return {"number": _add(np.asarray(value), tensors, place)}
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        if value.dtype not in _NAMES or value.layout is not torch.strided:
            raise TypeError(f"{place or 'the state'} is a tensor of {value.dtype}, which cannot be saved")
        tensors.append(value)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, np.ndarray):
        return {"array": _add(value, tensors, place)}
    if isinstance(value, Mapping):
        items = [
            [_encode(key, tensors, place), _encode(item, tensors, f"{place}.{key}" if place else str(key))]
            for key, item in value.items()
        ]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, tensors, f"{place}[{index}]") for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise TypeError(
        f"{place or 'the state'} is of type {type(value).__name__}, which a checkpoint cannot hold: use "
        "tensors, NumPy arrays, numbers, strings, None, and mappings, lists and tuples of these"
    )


def _add(array: np.ndarray, tensors: list[torch.Tensor], place: str) -> str:
    try:
        tensors.append(torch.from_numpy(np.array(array, order="C")))
    except TypeError:
        raise TypeError(
            f"{place or 'the state'} is an array of {array.dtype}, which cannot be saved"
        ) from None
    return str(len(tensors) - 1)


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "number":
        return tensors[content].numpy()[()]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    raise ValueError(f"{kind!r} is no kind of value")
