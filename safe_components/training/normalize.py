"""Scaling of observations by their statistics under random actions, with TorchRL's ``ObservationNorm``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Composite
from torchrl.envs.transforms import Compose, ObservationNorm

__all__ = ["entries_norm", "fit_norms", "fit_observation_norm", "observation_norm", "scale_steps"]

_ROUNDING = 1e-6  # a component that varies by less than this share of its size is constant
_SMALL = 1e-2  # beside the spread of all components
_RARE = 8.0  # the largest deviation, in standard deviations, beyond which a component hardly ever moves


def observation_norm(size: int, key: NestedKey = "observation") -> ObservationNorm:
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


def entries_norm(spec: Composite, entries: Sequence[NestedKey]) -> Compose:
    """Return a transform that scales the vectors among these entries, each by its own statistics.

    Images, and whatever else is no vector of floating-point numbers, are left as they are.

    Args:
        spec: entries of one environment, without batch size.
        entries: keys of the entries that are used.
    """
    vectors = [key for key in entries if spec[key].ndim == 1 and spec[key].dtype.is_floating_point]
    return Compose(*(observation_norm(spec[key].shape[-1], key) for key in vectors))


def fit_norms(norm: ObservationNorm | Compose, steps: TensorDictBase) -> None:
    """Fit a scaling, or each of those that a ``Compose`` holds, to the entries of ``steps``."""
    for each in norm if isinstance(norm, Compose) else [norm]:
        fit_observation_norm(each, steps[each.in_keys[0]])


def fit_observation_norm(norm: ObservationNorm, observation: torch.Tensor) -> None:
    """Set ``loc`` and ``scale`` to the mean and standard deviation σ over all leading dimensions.

    The unit of a component does not matter, with two exceptions, in which σ says nothing about its size:

    - A constant component is only centered (scale 1).
    - A component that hardly ever moves under random actions may move far later, such as a sensor of rare
      contacts. If its largest deviation is over 8 σ, and σ is under 1 % of the root mean square ``s`` of all
      standard deviations, its scale is ``s``.

    Args:
        norm: transform from :func:`observation_norm`, which is changed in place.
        observation: observations ``[..., o]`` in the units of the environment.

    Example:
        >>> norm = observation_norm(2)
        >>> fit_observation_norm(norm, torch.tensor([[1e-5, 9.81], [3e-5, 9.81]]))
        >>> norm.scale
        tensor([1.0000e-05, 1.0000e+00])
    """
    rows = observation.reshape(-1, observation.shape[-1]).double()
    loc, std = rows.mean(0), rows.std(0, correction=0)
    farthest = (rows - loc).abs().amax(0)
    together = std.square().mean().sqrt()
    scale = torch.where((farthest > _RARE * std) & (std < _SMALL * together), together, std)
    constant = farthest <= _ROUNDING * rows.abs().amax(0)
    norm.loc.copy_(loc)
    norm.scale.copy_(torch.where(constant, torch.ones_like(scale), scale))


def scale_steps(norm: ObservationNorm | Compose, steps: TensorDictBase) -> TensorDictBase:
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
