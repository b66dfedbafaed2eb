"""A check that a device can train here."""

from __future__ import annotations

import torch

__all__ = ["usable_device"]


def usable_device(name: str) -> torch.device:
    """Return the device of this name.

    Only the CPU and CUDA devices are supported, because the E-step and the multipliers compute in float64.

    Raises:
        ValueError: if the name is not that of a CPU or CUDA device, or if there is no such device here.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
        >>> usable_device("gpu")
        Traceback (most recent call last):
        ValueError: device is 'gpu', must be cpu, cuda, cuda:1, ...
    """
    try:
        device = torch.device(name)
    except RuntimeError:  # PyTorch knows no such kind of device
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"device is {name!r}, must be cpu, cuda, cuda:1, ...")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(
            f"device is {name}, but PyTorch {torch.__version__} finds {found} CUDA devices here; "
            "use --device cpu, or install a CUDA build"
        )
    return device
