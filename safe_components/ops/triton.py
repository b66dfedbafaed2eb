"""Whether a Triton kernel can compute with a tensor."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

_INSTALLED = find_spec("triton") is not None  # read once, because torch.compile cannot trace the search


def runs_triton(x: Tensor) -> bool:
    """Return whether Triton is installed and the tensor lies on a GPU of CUDA.

    Triton is optional: PyTorch's builds for a CPU come without it.

    Example:
        >>> import torch
        >>> runs_triton(torch.zeros(3))
        False
    """
    return _INSTALLED and x.is_cuda
