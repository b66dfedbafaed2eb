"""Likelihood of weighted particles under a Gaussian, through their two sufficient moments."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class WhitenedMoments(NamedTuple):
    """Weighted sums over particles in the coordinates ``z = L_old^-1 (a - μ_old)``, without unit.

    Attributes:
        total: ``Σ_k q_k``, ``[...]``; 1 where the weights are probabilities.
        first: ``Σ_k q_k z_k``, ``[..., a]``.
        second: ``Σ_k q_k z_k z_k^T``, ``[..., a, a]``.
    """

    total: Tensor
    first: Tensor
    second: Tensor


def whitened_moments(
    loc_old: Tensor, scale_tril_old: Tensor, action: Tensor, weight: Tensor
) -> WhitenedMoments:
    """Moments of particles about an older Gaussian, ``z_k = L_old^-1 (a_k - μ_old)``.

    They are sufficient: every weighted log-likelihood of a Gaussian is a function of them. Whitened, they
    are of order one however badly conditioned the covariance is.

    Args:
        loc_old: ``μ_old [..., a]``, in the unit of the action.
        scale_tril_old: ``L_old [..., a, a]``, lower Cholesky factor, positive diagonal.
        action: ``[..., K, a]``.
        weight: ``q [..., K]``.

    Returns:
        The three sums.

    Example:
        >>> import torch
        >>> action, weight = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[0.5, 0.5]])
        >>> m = whitened_moments(torch.ones(1, 1), 2 * torch.ones(1, 1, 1), action, weight)
        >>> m.first, m.second
        (tensor([[0.5000]]), tensor([[[0.5000]]]))
    """
    centred = action - loc_old.unsqueeze(-2)
    white = torch.linalg.solve_triangular(scale_tril_old, centred.mT, upper=False)
    return weighted_moments(white, weight)


def weighted_moments(white: Tensor, weight: Tensor) -> WhitenedMoments:
    """Moments of particles ``z^T [..., a, K]`` that are whitened already, with weights ``q [..., K]``."""
    weighted = white * weight.unsqueeze(-2)
    return WhitenedMoments(weight.sum(-1), weighted.sum(-1), white @ weighted.mT)


def joint_log_likelihood(moments: WhitenedMoments, shift: Tensor, ratio: Tensor, log_diag: Tensor) -> Tensor:
    """Weighted log-likelihood under the new mean and covariance together.

        Σ_k q_k log N(a_k; μ, Σ) = -½ tr(M S_δ Mᵀ) - w c(L),    S_δ = S - e δᵀ - δ eᵀ + w δ δᵀ

    Args:
        moments: of the particles about the old Gaussian.
        shift: ``δ = L_old^-1 (μ - μ_old) [..., a]``.
        ratio: ``M = L^-1 L_old [..., a, a]``.
        log_diag: ``Σ_i log L_ii [...]``; ``c(L)`` is this and ``½ a log 2π``.

    Returns:
        ``[...]``, in nats.
    """
    constant = 0.5 * shift.shape[-1] * math.log(2 * math.pi)
    cross = moments.first.unsqueeze(-1) * shift.unsqueeze(-2)
    outer = moments.total[..., None, None] * shift.unsqueeze(-1) * shift.unsqueeze(-2)
    about_new = moments.second - cross - cross.mT + outer
    return _covariance_term(about_new, ratio) - moments.total * (log_diag + constant)


def _covariance_term(second: Tensor, ratio: Tensor) -> Tensor:
    """``-½ tr(M S Mᵀ)``."""
    return -0.5 * ((ratio @ second) * ratio).sum((-2, -1))
