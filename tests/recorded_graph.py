"""A CUDA graph on the CPU: what a function does to tensors is recorded, and repeated without its Python."""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


# Every number or list of the host that becomes a tensor passes through the first; a number read, the second.
REFUSED = {
    torch.ops.aten.lift_fresh.default: "copies a number from the host",
    torch.ops.aten._local_scalar_dense.default: "makes the host wait for a number",
}


class Recording(TorchDispatchMode):
    """Keeps every operation with its operands and results; nothing recorded is ever freed or reused.

    It refuses what a CUDA graph cannot hold. ``tensor[..., 0] = 1.0`` and ``torch.tensor(1.0)`` copy from the
    host's memory; ``fill_``, ``full`` and ``tensor + 1.0`` hand the number to the kernel and are recorded.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.before = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in REFUSED:
            raise RuntimeError(f"{func} {REFUSED[func]}, which a CUDA graph cannot record")
        for tensor in tensors((args, kwargs)):
            if tensor.device.type == "cpu" and place(tensor) not in self.before:
                self.before[place(tensor)] = tensor, tensor.untyped_storage().clone()
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):  # made by the recording, unless it was there before
            self.before.setdefault(place(tensor), None)
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def undo(self):
        """Give the tensors from before their numbers back, because recording a graph runs nothing."""
        for saved in filter(None, self.before.values()):
            saved[0].untyped_storage().copy_(saved[1])

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, then in self.operations:
            now = func(*args, **kwargs)
            for old, new in zip(tensors(then), tensors(now), strict=True):
                if place(old) != place(new):
                    old.copy_(new)


@contextmanager
def graphs_on_the_cpu():
    """Within this context, ``torch.cuda`` records graphs of what runs on the CPU; waiting for it raises.

    As on CUDA, the function to be recorded runs once more for that, and its operations change nothing.
    """

    class Graph:
        def replay(self):
            self.recording.replay()

    @contextmanager
    def graph(graph, stream):
        graph.recording = Recording()
        with torch.random.fork_rng([]), graph.recording:
            yield
        graph.recording.undo()

    @contextmanager
    def nothing(stream):
        yield

    fakes = {
        "Stream": mock.MagicMock,
        "current_stream": mock.MagicMock,
        "stream": nothing,
        "CUDAGraph": Graph,
        "graph": graph,
        "synchronize": mock.Mock(side_effect=AssertionError("the host waits for the device")),
    }
    with mock.patch.multiple(torch.cuda, **fakes):
        yield
