"""How an ensemble's estimates become one."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Aggregate = Literal["min", "mean", "max", "conservative", "first"]


def aggregate(q: Tensor, how: Aggregate, std_coef: float = 0.5) -> Tensor:
    """Reduce an ensemble over its members, axis 0.

    ``min_e q_e``, ``mean_e q_e``, ``max_e q_e``, ``q_0`` or, for ``"conservative"``,
    ``mean_e q_e + std_coef * std_e q_e``, an upper confidence bound that suits costs.

    Args:
        q: ``[E, ...]``, one estimate per member.
        how: ``"min"`` (clipped double Q), ``"mean"``, ``"max"``, ``"conservative"`` or ``"first"`` (one
            member alone, as TD3's actor takes it).
        std_coef: ``k``, the weight of the members' standard deviation; read by ``"conservative"``
            only. The deviation is the population's (divided by ``E``), so one member has none.

    Returns:
        ``[...]``, in the unit of ``q``.

    Raises:
        ValueError: if ``how`` is unknown, or ``q`` has no member to reduce.

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
        raise ValueError(f"q needs a leading axis of at least one member, got shape {tuple(q.shape)}")
    if how == "min":
        return q.amin(0)
    if how == "mean":
        return q.mean(0)
    if how == "max":
        return q.amax(0)
    if how == "first":
        return q[0]
    if how == "conservative":
        if q.shape[0] == 1:
            return q[0]  # the gradient of a standard deviation of zero would be NaN
        return q.mean(0) + std_coef * q.std(0, correction=0)
    raise ValueError(f"how={how!r} is not one of {', '.join(get_args(Aggregate))}")
