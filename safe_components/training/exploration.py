"""Exploration noise for deterministic policies."""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.data import Bounded
from torchrl.modules import AdditiveGaussianModule

from safe_components.training.task import Task

__all__ = ["with_noise"]


def with_noise(policy: TensorDictModuleBase, std: float, task: Task) -> TensorDictSequential:
    """Return the policy with Gaussian noise on its actions, for exploration.

        a ← clip(a + h std ξ, low, high),   ξ ~ N(0, I),   h = (high - low) / 2

    The noise is TorchRL's ``AdditiveGaussianModule`` with a constant standard deviation. It acts only while
    exploration is on, as it is in TorchRL's collectors.

    Args:
        policy: policy that writes the action.
        std: standard deviation of the noise, as a share of half the action range.
        task: environments that give the action bounds and the device.
    """
    low, high = task.bounds["action_low"], task.bounds["action_high"]
    noise = AdditiveGaussianModule(
        Bounded(low, high, shape=low.shape, dtype=low.dtype),
        sigma_init=float(std),
        sigma_end=float(std),
        std=((high - low) / 2).tolist(),
    )
    return TensorDictSequential(policy, noise).to(task.device)
