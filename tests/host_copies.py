"""Refusal, on the CPU, of what the recording of a CUDA graph refuses."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoHostCopies(TorchDispatchMode):
    """Raise if Python numbers become the content of a tensor, or a tensor becomes a Python number."""

    refused = (
        torch.ops.aten.lift_fresh.default,  # torch.tensor([1.0]), x[0] = 1.0
        torch.ops.aten._to_copy.default,  # x.to(another device); another dtype alone is a kernel
        torch.ops.aten._local_scalar_dense.default,  # x.item(), float(x), if x:
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        cast = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") is None
        if func in self.refused and not cast:
            raise AssertionError(f"{func} would make a GPU wait for the host")
        return func(*args, **(kwargs or {}))
