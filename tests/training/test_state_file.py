"""State files: what goes in comes out, in the safetensors format, and nothing in them can run."""

import contextlib
import json
import pickle
import random

import numpy as np
import pytest
import torch

from safe_components.training import read_state, write_state
from safe_components.training.state_file import _DTYPES

STATE = {
    "plain": [1, -(2**100), 1.5, True, None, "text\u03bb", (), [], {}],
    3: {"nested": (torch.arange(6).view(2, 3), [np.float64(0.1), np.arange(3, dtype=np.uint32)])},
    "expanded": torch.ones(1).expand(1).as_strided((1,), (0,)),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "infinite": [float("inf"), torch.tensor(float("nan"))],
}


def equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    else:
        np.testing.assert_array_equal(a, b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


def test_what_is_written_is_read(tmp_path):
    write_state(tmp_path / "state", STATE)
    equal(read_state(tmp_path / "state"), STATE)


@pytest.mark.parametrize("dtype", _DTYPES.values())
def test_every_dtype(dtype, tmp_path):
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    write_state(tmp_path / "state", {"a": tensor, "b": torch.ones(3, dtype=torch.bool)})
    assert torch.equal(read_state(tmp_path / "state")["a"], tensor)


def test_the_format_is_that_of_safetensors(tmp_path):
    """Read with NumPy alone, as https://github.com/huggingface/safetensors describes it."""
    first, second = torch.arange(3, dtype=torch.int16), torch.tensor([[1.5, 2.5]], dtype=torch.float64)
    write_state(tmp_path / "state", [first, second])
    content = (tmp_path / "state").read_bytes()
    length = int(np.frombuffer(content[:8], "<u8")[0])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert all(isinstance(value, str) for value in header.pop("__metadata__").values())
    spans = sorted(record["data_offsets"] for record in header.values())
    assert [0, *(end for _, end in spans)] == [*(begin for begin, _ in spans), len(data)]  # no gaps
    for name, dtype, tensor in (("0", "<i2", first), ("1", "<f8", second)):
        begin, end = header[name]["data_offsets"]
        assert begin % tensor.element_size() == 0
        found = np.frombuffer(data[begin:end], dtype).reshape(header[name]["shape"])
        np.testing.assert_array_equal(found, tensor.numpy())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), r"a\.b\[1\] is of type object"),
        (lambda: 0, "of type function"),
        (np.array([object()]), "array of object"),
        (torch.eye(2).to_sparse(), "tensor of torch.float32, which cannot be saved"),
    ],
)
def test_what_cannot_be_saved_is_named(value, said, tmp_path):
    with pytest.raises(TypeError, match=said):
        write_state(tmp_path / "state", {"a": {"b": [0, value]}})


class Hostile:
    """A pickle that would leave a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    path, trace = tmp_path / "state", tmp_path / "trace"
    for content in (pickle.dumps(Hostile(trace)), pickle.dumps({"a": Hostile(trace)}, protocol=0)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no state of a run, or is damaged"):
            read_state(path)
    torch.save({"a": Hostile(trace)}, path)
    with pytest.raises(ValueError, match="holds no state"):
        read_state(path)
    assert not trace.exists()


def test_damage_is_an_error_or_another_number_but_never_anything_else(tmp_path):
    path = tmp_path / "state"
    write_state(path, STATE)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 1, 1, 4])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        with contextlib.suppress(ValueError):
            read_state(path)
