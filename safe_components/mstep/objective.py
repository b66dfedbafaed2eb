"""The M-step's terms and their gradient, written out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_components.mstep.moments import WhitenedMoments, whitened_moments


class OldPolicy(NamedTuple):
    """What stays the same while the policy is fitted to one set of particles."""

    loc: Tensor
    """``μ_old [..., a]``."""
    scale_tril: Tensor
    """``L_old [..., a, a]``."""
    log_diag: Tensor
    """``Σ_i log (L_old)_ii [...]``."""
    moments: WhitenedMoments
    """of the particles, about the old policy."""

    @classmethod
    def of(cls, loc: Tensor, scale_tril: Tensor, action: Tensor, weight: Tensor) -> OldPolicy:
        """From the old Gaussian and particles ``action [..., K, a]`` with ``weight [..., K]``."""
        moments = whitened_moments(loc, scale_tril, action, weight)
        return cls(loc, scale_tril, log_diag(scale_tril), moments)


class DecoupledTerms(NamedTuple):
    """Means over the states, each ``[]``, in nats."""

    fit_mean: Tensor
    """``mean Σ_k q_k log N(a_k; μ, Σ_old)``."""
    fit_cov: Tensor
    """``mean Σ_k q_k log N(a_k; μ_old, Σ)``."""
    kl_mean: Tensor
    """``C_μ``."""
    kl_cov: Tensor
    """``C_Σ``."""


def decoupled_terms(old: OldPolicy, loc: Tensor, scale_tril: Tensor) -> DecoupledTerms:
    """Likelihood and divergence of a Gaussian, decoupled, with the gradient to its parameters.

    With ``δ = L_old^-1 (μ - μ_old)``, ``M = L^-1 L_old``, the moments ``w, e, S`` and ``c = ½ a log 2π``

        fit_mean = mean -½ [tr S - 2 eᵀδ + w δᵀδ] - w (Σ_i log (L_old)_ii + c)
        fit_cov  = mean -½ tr(M S Mᵀ) - w (Σ_i log L_ii + c)
        kl_mean  = mean ½ δᵀδ
        kl_cov   = mean Σ_i log L_ii / (L_old)_ii + ½ [tr(M Mᵀ) - a]

    For weights ``g`` on the four terms the gradient is, per state and before the mean,

        ∂μ = L_old^-T [g_kl_mean δ + g_fit_mean (e - w δ)]
        ∂L = -tril(L^-T M A Mᵀ) + diag((g_kl_cov - w g_fit_cov) / L_ii),    A = g_kl_cov I - g_fit_cov S

    which is what automatic differentiation gives, in a third of the operations; that matters because an
    M-step is many small operations in a row. It can be differentiated once.

    Args:
        old: the old policy with the particles' moments; no gradient flows there.
        loc: ``μ [..., a]``.
        scale_tril: ``L [..., a, a]``, lower Cholesky factor, positive diagonal.

    Returns:
        The four means.

    Example:
        >>> loc, eye = torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2)
        >>> old = OldPolicy.of(loc, eye, torch.zeros(1, 3, 2), torch.full((1, 3), 1 / 3))
        >>> terms = decoupled_terms(old, loc + 1.0, eye)
        >>> terms.kl_mean, terms.kl_cov
        (tensor(1.), tensor(0.))
    """
    return DecoupledTerms(*_Decoupled.apply(loc, scale_tril, old))


def log_diag(scale_tril: Tensor) -> Tensor:
    """``Σ_i log L_ii [...]``, half the log-determinant of the covariance."""
    return scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class _Decoupled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale_tril: Tensor, old: OldPolicy) -> tuple[Tensor, ...]:
        total, first, second = old.moments
        size = loc.shape[-1]
        shift = torch.linalg.solve_triangular(old.scale_tril, (loc - old.loc).unsqueeze(-1), upper=False)
        shift = shift.squeeze(-1)
        ratio = torch.linalg.solve_triangular(scale_tril, old.scale_tril, upper=False)
        spread = ratio @ second
        ctx.old = old
        ctx.save_for_backward(scale_tril, shift, ratio, spread)

        constant = 0.5 * size * math.log(2 * math.pi)
        log_size = log_diag(scale_tril)
        distance = shift.square().sum(-1)
        trace = second.diagonal(dim1=-2, dim2=-1).sum(-1)
        fit_mean = (
            (first * shift).sum(-1) - 0.5 * (trace + total * distance) - total * (old.log_diag + constant)
        )
        fit_cov = -0.5 * (spread * ratio).sum((-2, -1)) - total * (log_size + constant)
        kl_cov = log_size - old.log_diag + 0.5 * (ratio.square().sum((-2, -1)) - size)
        means = torch.stack([fit_mean, fit_cov, distance, kl_cov]).flatten(1).mean(1).unbind()
        return means[0], means[1], 0.5 * means[2], means[3]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        scale_tril, shift, ratio, spread = ctx.saved_tensors
        old: OldPolicy = ctx.old
        total, first, _ = old.moments
        fit_mean, fit_cov, kl_mean, kl_cov = (g / total.numel() for g in gradients)

        white = (kl_mean - fit_mean * total).unsqueeze(-1) * shift + fit_mean * first
        loc_grad = torch.linalg.solve_triangular(old.scale_tril.mT, white.unsqueeze(-1), upper=True)
        inner = (kl_cov * ratio - fit_cov * spread) @ ratio.mT
        tril_grad = torch.linalg.solve_triangular(scale_tril.mT, inner, upper=True).neg_().tril_()
        diagonal = tril_grad.diagonal(dim1=-2, dim2=-1)
        diagonal += (kl_cov - fit_cov * total).unsqueeze(-1) / scale_tril.diagonal(dim1=-2, dim2=-1)
        return loc_grad.squeeze(-1), tril_grad, None
