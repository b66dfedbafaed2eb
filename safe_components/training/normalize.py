"""Scaling of observations by their statistics under random actions, with TorchRL's ``ObservationNorm``."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.envs.transforms import ObservationNorm

__all__ = ["fit_observation_norm", "observation_norm", "scale_steps"]

# A component that hardly varies under random actions may vary more later, so it is only centered.
_STILL = 1e-2


def observation_norm(size: int, key: str = "observation") -> ObservationNorm:
    """Return a transform ``(observation - loc) / scale`` that starts as the identity.

    Its ``loc`` and ``scale`` are buffers, so they are part of its ``state_dict`` and of clones.

    Args:
        size: size of the observation vector.
        key: key of the observation.

    Example:
        >>> norm = observation_norm(2)
        >>> fit_observation_norm(norm, torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> norm.loc, norm.scale
        (tensor([2., 5.]), tensor([1., 1.]))
    """
    return ObservationNorm(loc=torch.zeros(size), scale=torch.ones(size), in_keys=[key], standard_normal=True)


def fit_observation_norm(norm: ObservationNorm, observation: torch.Tensor) -> None:
    """Set ``loc`` and ``scale`` to the mean and standard deviation over all leading dimensions.

    A component whose standard deviation is under 0.01 keeps scale 1.

    Args:
        norm: transform from :func:`observation_norm`, which is changed in place.
        observation: observations ``[..., o]`` in the units of the environment.
    """
    rows = observation.reshape(-1, observation.shape[-1])
    std = rows.std(0, correction=0)
    norm.loc.copy_(rows.mean(0))
    norm.scale.copy_(torch.where(std < _STILL, torch.ones_like(std), std))


def scale_steps(norm: ObservationNorm, steps: TensorDictBase) -> TensorDictBase:
    """Scale the observations of collected steps in place, including those under ``"next"``.

    A TorchRL transform that is called directly changes only the entries at the root. Inside an environment it
    also changes those under ``"next"``.

    Args:
        norm: fitted transform.
        steps: steps of any batch size, with ``observation`` and ``("next", "observation")``.

    Returns:
        The same ``steps``.
    """
    norm(steps)
    norm(steps["next"])
    return steps
