"""Reduce the estimates of an ensemble to one."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Aggregate = Literal["min", "mean", "max", "conservative", "first"]


def aggregate(q: Tensor, how: Aggregate, std_coef: float = 0.5) -> Tensor:
    """Reduce an ensemble over its members ``e``, axis 0.

        min      min_e q_e                    conservative     mean_e q_e + k std_e q_e
        mean     mean_e q_e                   first            q_0
        max      max_e q_e

    The conservative value is an upper confidence bound, which suits costs.

    Args:
        q: ``[E, ...]``, one estimate per member.
        how: ``"min"`` (clipped double Q), ``"mean"``, ``"max"``, ``"conservative"`` or ``"first"`` (TD3's
            actor follows one member alone).
        std_coef: weight ``k`` of the members' standard deviation; only ``"conservative"`` reads it. The
            deviation is that of the population (divided by ``E``), so it is 0 for one member.

    Returns:
        ``[...]``, in the unit of ``q``.

    Raises:
        ValueError: if ``how`` is unknown, or ``q`` has no member.

    Source: the conservative bound of CAL (Wu et al. 2024, arXiv 2401.14758), which uses ``k = 0.5``.

    Example:
        >>> import torch
        >>> q = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
        >>> aggregate(q, "min")
        tensor([1., 4.])
        >>> aggregate(q, "conservative", std_coef=0.5)
        tensor([2.5000, 4.0000])
    """
    if q.ndim == 0 or q.shape[0] == 0:
        raise ValueError(f"q needs a leading axis with at least one member, got shape {tuple(q.shape)}")
    if how == "min":
        return q.amin(0)
    if how == "mean":
        return q.mean(0)
    if how == "max":
        return q.amax(0)
    if how == "first":
        return q[0]
    if how == "conservative":
        if q.shape[0] == 1 or not q.numel():
            return q[0]  # the gradient of a standard deviation of zero would be NaN
        return q.mean(0) + std_coef * q.std(0, correction=0)
    raise ValueError(f"how={how!r} is not one of {', '.join(get_args(Aggregate))}")
