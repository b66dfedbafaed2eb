"""A CUDA graph on the CPU: what a function does to tensors is recorded, and repeated without its Python."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


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
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in REFUSED:
            raise RuntimeError(f"{func} {REFUSED[func]}, which a CUDA graph cannot record")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, then in self.operations:
            now = func(*args, **kwargs)
            for old, new in zip(tensors(then), tensors(now), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class RecordedModule:
    """Stands in for ``tensordict.nn.CudaGraphModule``: two calls run the function, others repeat it.

    On CUDA the recording runs nothing, so there the second call runs the function twice.
    """

    def __init__(self, module, warmup=2):
        self.module, self.calls = module, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls == 1:
            return self.module(*[arg.clone() for arg in args])
        if self.calls == 2:
            self.inputs = [arg.clone() for arg in args]
            self.recording = Recording()
            with self.recording:
                self.out = self.module(*self.inputs)
            return self.out.clone()
        torch._foreach_copy_(self.inputs, list(args))
        self.recording.replay()
        return self.out.clone()
