"""Noise for policies that have none of their own."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.data import Bounded
from torchrl.modules import AdditiveGaussianModule

from plumbing.task import Task

__all__ = ["with_noise"]


def with_noise(policy: TensorDictModuleBase, std: float, task: Task) -> TensorDictSequential:
    """The policy followed by ``clip(a + h std ξ, low, high)``, ``ξ ~ N(0, I)``, ``h`` half the action range.

    Only while exploration is on, as TorchRL's collectors have it; TorchRL's ``AdditiveGaussianModule``
    with a constant deviation.

    Raises:
        ValueError: if ``std`` is negative or not finite.
    """
    if not 0.0 <= std < float("inf"):
        raise ValueError(f"exploration_std is {std}, must be finite and at least 0")
    low, high = task.bounds["action_low"], task.bounds["action_high"]
    noise = AdditiveGaussianModule(
        Bounded(low, high, shape=low.shape, dtype=low.dtype),
        sigma_init=float(std),
        sigma_end=float(std),
        std=((high - low) / 2).tolist(),
    )
    return TensorDictSequential(policy, noise).to(task.device)
