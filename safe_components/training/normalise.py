"""Scale observations by what random actions meet, with TorchRL's ``ObservationNorm``."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.envs.transforms import ObservationNorm

__all__ = ["fit_observation_norm", "observation_norm", "scale_steps"]

# A component that hardly moves under random actions may move a lot later: it is centred only.
_STILL = 1e-2


def observation_norm(size: int, key: str = "observation") -> ObservationNorm:
    """A transform ``(observation - loc) / scale`` that starts as the identity.

    Its ``loc`` and ``scale`` are buffers: they are saved with it, and clones taken later hold the same.

    Args:
        size: of the observation vector.
        key: of the observation.

    Example:
        >>> norm = observation_norm(2)
        >>> fit_observation_norm(norm, torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> norm.loc, norm.scale
        (tensor([2., 5.]), tensor([1., 1.]))
    """
    return ObservationNorm(loc=torch.zeros(size), scale=torch.ones(size), in_keys=[key], standard_normal=True)


def fit_observation_norm(norm: ObservationNorm, observation: torch.Tensor) -> None:
    """Set ``loc`` and ``scale`` to mean and standard deviation over all leading dimensions.

    A component whose standard deviation is under 0.01 keeps scale 1.

    Args:
        norm: from :func:`observation_norm`; changed in place.
        observation: ``[..., o]``, in the environment's own units.
    """
    rows = observation.reshape(-1, observation.shape[-1])
    std = rows.std(0, correction=0)
    norm.loc.copy_(rows.mean(0))
    norm.scale.copy_(torch.where(std < _STILL, torch.ones_like(std), std))


def scale_steps(norm: ObservationNorm, steps: TensorDictBase) -> TensorDictBase:
    """Scale the observations of collected steps, those under ``"next"`` too, in place.

    Called by itself a TorchRL transform changes the root's entries only; inside an environment it sees both.

    Args:
        norm: fitted.
        steps: of any batch size, with ``observation`` and ``("next", "observation")``.

    Returns:
        ``steps``.
    """
    norm(steps)
    norm(steps["next"])
    return steps
