"""The M-step's terms and their gradient, written out."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_components.mstep.moments import WhitenedMoments, weighted_moments


class OldPolicy(NamedTuple):
    """What stays the same while the policy is fitted to one set of particles."""

    loc: Tensor
    """``μ_old [..., a]``."""
    scale_tril: Tensor
    """``L_old [..., a, a]``."""
    whiten: Tensor
    """``L_old^-1 [..., a, a]``, solved for once."""
    log_diag: Tensor
    """``Σ_i log (L_old)_ii [...]``."""
    moments: WhitenedMoments
    """of the particles, about the old policy."""
    base: Tensor
    """``[5]``: what of each mean in `DecoupledTerms` does not depend on the new policy."""

    @classmethod
    def of(cls, loc: Tensor, scale_tril: Tensor, action: Tensor, weight: Tensor) -> OldPolicy:
        """From the old Gaussian and particles ``action [..., K, a]`` with ``weight [..., K]``."""
        whiten, log_size = _inverse(scale_tril), log_diag(scale_tril)
        moments = weighted_moments(whiten @ (action - loc.unsqueeze(-2)).mT, weight)
        size, states = loc.shape[-1], log_size.numel()
        constant = 0.5 * size * math.log(2 * math.pi)
        log_total = (moments.total * (log_size + constant)).sum() / states
        trace = moments.second.diagonal(dim1=-2, dim2=-1).sum() / states
        entropy = log_size.sum() / states + (constant + 0.5 * size)
        zero = torch.zeros_like(trace)
        base = torch.stack([-0.5 * trace - log_total, -log_total, zero, zero, entropy])
        return cls(loc, scale_tril, whiten, log_size, moments, base)


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
    entropy: Tensor
    """of ``N(μ, Σ)``; carries no gradient."""


def decoupled_terms(old: OldPolicy, loc: Tensor, scale_tril: Tensor) -> DecoupledTerms:
    """Likelihood and divergence of a Gaussian, decoupled, with the gradient to its parameters.

    With ``δ = L_old^-1 (μ - μ_old)``, ``M = L^-1 L_old``, the moments ``w, e, S`` and ``c = ½ a log 2π``

        fit_mean = mean -½ [tr S - 2 eᵀδ + w δᵀδ] - w (Σ_i log (L_old)_ii + c)
        fit_cov  = mean -½ tr(M S Mᵀ) - w (Σ_i log L_ii + c)
        kl_mean  = mean ½ δᵀδ
        kl_cov   = mean Σ_i log L_ii / (L_old)_ii + ½ [tr(M Mᵀ) - a]

    the last one summed as ``½ |M - I|² + tr(M - I) - Σ_i log M_ii``, which keeps its digits where the policy
    has hardly moved. For weights ``g`` on the four terms the gradient is, per state and before the mean,

        ∂μ = L_old^-T [g_kl_mean δ + g_fit_mean (e - w δ)]
        ∂L = -tril(L^-T M A Mᵀ) + diag((g_kl_cov - w g_fit_cov) / L_ii),    A = g_kl_cov I - g_fit_cov S

    which is what automatic differentiation gives, in a quarter of the operations; that matters because an
    M-step is many small operations in a row. One triangular solve, for ``L^-1``, serves both directions.
    It can be differentiated once.

    Args:
        old: the old policy with the particles' moments; no gradient flows there.
        loc: ``μ [..., a]``.
        scale_tril: ``L [..., a, a]``, lower Cholesky factor, positive diagonal.

    Returns:
        The means.

    Example:
        >>> loc, eye = torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2)
        >>> old = OldPolicy.of(loc, eye, torch.zeros(1, 3, 2), torch.full((1, 3), 1 / 3))
        >>> terms = decoupled_terms(old, loc + 1.0, eye)
        >>> terms.kl_mean, terms.kl_cov
        (tensor(1.), tensor(0.))
    """
    terms = DecoupledTerms(*_Decoupled.apply(loc, scale_tril, old))
    # Not marked as non-differentiable inside: torch.compile of PyTorch 2.11 loses the mark and then fails.
    return terms._replace(entropy=terms.entropy.detach())


def log_diag(scale_tril: Tensor) -> Tensor:
    """``Σ_i log L_ii [...]``, half the log-determinant of the covariance."""
    return scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _inverse(scale_tril: Tensor) -> Tensor:
    if scale_tril.shape[-1] <= 2:
        # Libraries go through a batch matrix by matrix. Here D^-1 - D^-1 (L - D) D^-1 is all of the series.
        scale = scale_tril.diagonal(dim1=-2, dim2=-1).reciprocal()
        outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
        return torch.diag_embed(2.0 * scale) - scale_tril * outer
    eye = torch.eye(scale_tril.shape[-1], dtype=scale_tril.dtype, device=scale_tril.device)
    return torch.linalg.solve_triangular(scale_tril, eye.expand_as(scale_tril), upper=False)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """``Σ left * right`` over all entries: a mean over the states is this, once divided by their number."""
    return torch.dot(left.reshape(-1), right.reshape(-1))


@functools.cache  # made before a CUDA graph is captured, which allows no copy from the host
def _combination(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The five means as combinations of the sums in `_Decoupled.forward`."""
    rows = [
        [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.0, -0.5, 0.0, 0.0],
        [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, -1.0, 0.0, 0.5, 1.0],
        [0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0],
    ]
    return torch.tensor(rows, dtype=dtype, device=device)


class _Decoupled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale_tril: Tensor, old: OldPolicy) -> tuple[Tensor, ...]:
        total, first, second = old.moments
        shift = (old.whiten @ (loc - old.loc).unsqueeze(-1)).squeeze(-1)
        pull = torch.addcmul(first, total.unsqueeze(-1), shift, value=-1.0)
        inverse = _inverse(scale_tril)
        ratio = inverse @ old.scale_tril
        spread = ratio @ second
        ctx.old = old
        ctx.save_for_backward(inverse, shift, pull, ratio, spread)

        change = ratio.clone()
        moved = change.diagonal(dim1=-2, dim2=-1)
        log_change = moved.log().sum(-1)  # of L_old against L
        moved -= 1.0
        sums = torch.stack(
            [
                _dot(first + pull, shift),
                _dot(shift, shift),
                _dot(total, log_change),
                log_change.sum(),
                _dot(spread, ratio),
                _dot(change, change),
                moved.sum(),
            ]
        )
        combine = _combination(sums.dtype, sums.device)
        return torch.addmv(old.base, combine, sums, alpha=1.0 / total.numel()).unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        inverse, shift, pull, ratio, spread = ctx.saved_tensors
        old: OldPolicy = ctx.old
        total = old.moments.total
        fit_mean, fit_cov, kl_mean, kl_cov = (torch.stack(gradients[:4]) / total.numel()).unbind()

        white = kl_mean * shift + fit_mean * pull
        loc_grad = (old.whiten.mT @ white.unsqueeze(-1)).squeeze(-1)
        inner = (fit_cov * spread - kl_cov * ratio) @ ratio.mT
        tril_grad = (inverse.mT @ inner).tril_()
        diagonal = tril_grad.diagonal(dim1=-2, dim2=-1)
        diagonal += (kl_cov - fit_cov * total).unsqueeze(-1) * inverse.diagonal(dim1=-2, dim2=-1)
        return loc_grad, tril_grad, None
