"""The terms of `likelihood` from the particles' moments, with their gradient written out.

Every weighted log-likelihood of a Gaussian is a function of two moments of the particles. The moments are
taken once per set of particles, in the coordinates ``z = L_old⁻¹ (a - μ_old)``. There they are of order one,
however badly the covariance is conditioned.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_components.mstep.likelihood import DecoupledTerms
from safe_components.ops import gaussian_kl, runs_triton


class OldPolicy(NamedTuple):
    """Constants of one M-step: the old Gaussian of each state and the moments of its particles.

    Attributes:
        loc: ``μ_old [..., a]``.
        scale_tril: ``L_old [..., a, a]``.
        whiten: ``L_old⁻¹ [..., a, a]``.
        total: ``w = Σ_k q_k [...]``; 1 if the weights are probabilities.
        first: ``e = Σ_k q_k z_k [..., a]``.
        second: ``S = Σ_k q_k z_k z_kᵀ [..., a, a]``.
        base: ``[5]``, the part of each mean in `DecoupledTerms` that the new policy does not change.
        combination: ``[5, 7]``, from `combination`.
    """

    loc: Tensor
    scale_tril: Tensor
    whiten: Tensor
    total: Tensor
    first: Tensor
    second: Tensor
    base: Tensor
    combination: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, loc: Tensor, scale_tril: Tensor, action: Tensor, weight: Tensor, combination: Tensor
    ) -> OldPolicy:
        """From the old Gaussian and particles ``action [..., K, a]`` with ``weight [..., K]``."""
        whiten = _inverse(scale_tril)
        log_diag = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        white = whiten @ (action - loc.unsqueeze(-2)).mT  # [..., a, K]
        weighted = white * weight.unsqueeze(-2)
        total, first, second = weight.sum(-1), weighted.sum(-1), white @ weighted.mT
        size, states = loc.shape[-1], log_diag.numel()
        constant = 0.5 * size * math.log(2 * math.pi)
        log_total = (total * (log_diag + constant)).sum() / states
        trace = second.diagonal(dim1=-2, dim2=-1).sum() / states
        entropy = log_diag.sum() / states + (constant + 0.5 * size)
        zero = torch.zeros_like(trace)
        base = torch.stack([-0.5 * trace - log_total, -log_total, zero, zero, entropy])
        return cls(loc.detach(), scale_tril.detach(), whiten, total, first, second, base, combination)


def combination(like: Tensor) -> Tensor:
    """Return the five means as combinations of the sums in `_Decoupled.forward`, ``[5, 7]``.

    It is a copy from the host, which the recording of a CUDA graph refuses: make it before.
    """
    rows = [
        [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.0, -0.5, 0.0, 0.0],
        [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, -1.0, 0.0, 0.5, 1.0],
        [0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0],
    ]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def decoupled_terms(old: OldPolicy, loc: Tensor, scale_tril: Tensor) -> DecoupledTerms:
    """Compute `likelihood.decoupled_terms`; differentiable once, with respect to ``loc`` and ``scale_tril``.

    With ``δ = L_old⁻¹ (μ - μ_old)``, ``M = L⁻¹ L_old`` and ``c = ½ a log 2π``,

        fit_mean = mean -½ [tr S - 2 eᵀδ + w δᵀδ] - w (Σ_i log (L_old)_ii + c)
        fit_cov  = mean -½ tr(M S Mᵀ) - w (Σ_i log L_ii + c)
        kl_mean  = mean ½ δᵀδ
        kl_cov   = mean Σ_i log L_ii / (L_old)_ii + ½ [tr(M Mᵀ) - a]

    The last one is summed as ``½ |M - I|² + tr(M - I) - Σ_i log M_ii``. That form keeps its digits while the
    policy has hardly moved. For weights ``g`` on the four terms the gradient is, per state and before the
    mean,

        ∂μ = L_old⁻ᵀ [g_kl_mean δ + g_fit_mean (e - w δ)]
        ∂L = -tril(L⁻ᵀ M A Mᵀ) + diag((g_kl_cov - w g_fit_cov) / L_ii),    A = g_kl_cov I - g_fit_cov S

    Automatic differentiation gives the same in four times as many operations. Their number sets the pace,
    because an M-step is many small operations in a row. One triangular solve, for ``L⁻¹``, serves both
    directions.
    """
    terms = _Decoupled.apply(loc, scale_tril, old)  # type: ignore[no-untyped-call]  # torch's own
    fit_mean, fit_cov, kl_mean, kl_cov, entropy = terms
    # `mark_non_differentiable` would say the same, but torch.compile of PyTorch 2.11 fails on it.
    return DecoupledTerms(fit_mean, fit_cov, kl_mean, kl_cov, entropy.detach())


def is_fusible(loc: Tensor) -> bool:
    """Return whether ``_fused_triton.decoupled_terms`` computes the terms of this policy."""
    floats = (torch.float32, torch.float64)
    return runs_triton(loc) and loc.shape[-1] <= 32 and loc.dtype in floats


def state_terms(old: OldPolicy, loc: Tensor, scale_tril: Tensor) -> DecoupledTerms:
    """Compute the terms of each state, ``[...]``, whose means are those of `decoupled_terms`.

    They are differentiated automatically, any number of times and under ``torch.vmap``.
    """
    shift = (old.whiten @ (loc - old.loc).unsqueeze(-1)).squeeze(-1)
    ratio = torch.linalg.solve_triangular(scale_tril, old.scale_tril, upper=False)
    log_old, log_new = (x.diagonal(dim1=-2, dim2=-1).log().sum(-1) for x in (old.scale_tril, scale_tril))
    size = loc.shape[-1]
    constant = 0.5 * size * math.log(2 * math.pi)
    trace = old.second.diagonal(dim1=-2, dim2=-1).sum(-1)
    moved = (shift * (old.total.unsqueeze(-1) * shift - 2.0 * old.first)).sum(-1)
    kl_mean, kl_cov = gaussian_kl(old.loc, old.scale_tril, loc, scale_tril)
    return DecoupledTerms(
        fit_mean=-0.5 * (trace + moved) - old.total * (log_old + constant),
        fit_cov=-0.5 * (ratio @ old.second * ratio).sum((-2, -1)) - old.total * (log_new + constant),
        kl_mean=kl_mean,
        kl_cov=kl_cov,
        entropy=(log_new + constant + 0.5 * size).detach(),
    )


def joint_log_likelihood(old: OldPolicy, fit_cov: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    """Compute `likelihood.log_likelihood` of the new mean and covariance, ``fit_cov`` + mean `joint_term`."""
    return fit_cov + joint_term(old, loc, scale_tril).mean()


def joint_term(old: OldPolicy, loc: Tensor, scale_tril: Tensor) -> Tensor:
    """Compute what the new mean adds to the joint log-likelihood of each state, ``[...]``.

        Σ_k q_bk log N(a_bk; μ, Σ) = fit_cov + yᵀ (x - ½ w y)

    with ``[y, x] = L⁻¹ [μ - μ_old, L_old e]`` and ``fit_cov`` of the same state.
    """
    first = (old.scale_tril @ old.first.unsqueeze(-1)).squeeze(-1)
    columns = torch.stack([loc - old.loc, first], -1)
    y, x = torch.linalg.solve_triangular(scale_tril, columns, upper=False).unbind(-1)
    return torch.sum(y * (x - 0.5 * old.total.unsqueeze(-1) * y), -1)


def _inverse(scale_tril: Tensor) -> Tensor:
    if scale_tril.shape[-1] <= 2:
        # Solvers take the matrices of a batch one by one. With the diagonal D of L, D⁻¹ - D⁻¹ (L - D) D⁻¹ is
        # exact here: the series ends because (L - D)² = 0.
        scale = scale_tril.diagonal(dim1=-2, dim2=-1).reciprocal()
        outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
        return torch.diag_embed(2.0 * scale) - scale_tril * outer
    eye = torch.eye(scale_tril.shape[-1], dtype=scale_tril.dtype, device=scale_tril.device)
    inverse: Tensor = torch.linalg.solve_triangular(scale_tril, eye.expand_as(scale_tril), upper=False)
    return inverse


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """``Σ left * right`` over all entries: a mean over the states, once divided by their number."""
    return torch.dot(left.reshape(-1), right.reshape(-1))


class _Decoupled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale_tril: Tensor, old: OldPolicy) -> tuple[Tensor, ...]:
        shift = (old.whiten @ (loc - old.loc).unsqueeze(-1)).squeeze(-1)
        pull = torch.addcmul(old.first, old.total.unsqueeze(-1), shift, value=-1.0)
        inverse = _inverse(scale_tril)
        ratio = inverse @ old.scale_tril
        spread = ratio @ old.second
        ctx.old = old
        ctx.save_for_backward(inverse, shift, pull, ratio, spread)

        change = ratio.clone()
        moved = change.diagonal(dim1=-2, dim2=-1)
        log_change = moved.log().sum(-1)  # of L_old against L
        moved -= 1.0
        sums = torch.stack(
            [
                _dot(old.first + pull, shift),
                _dot(shift, shift),
                _dot(old.total, log_change),
                log_change.sum(),
                _dot(spread, ratio),
                _dot(change, change),
                moved.sum(),
            ]
        )
        return torch.addmv(old.base, old.combination, sums, alpha=1.0 / old.total.numel()).unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        inverse, shift, pull, ratio, spread = ctx.saved_tensors
        old: OldPolicy = ctx.old
        fit_mean, fit_cov, kl_mean, kl_cov = (torch.stack(gradients[:4]) / old.total.numel()).unbind()

        white = kl_mean * shift + fit_mean * pull
        loc_grad = (old.whiten.mT @ white.unsqueeze(-1)).squeeze(-1)
        inner = (fit_cov * spread - kl_cov * ratio) @ ratio.mT
        tril_grad = (inverse.mT @ inner).tril_()
        diagonal = tril_grad.diagonal(dim1=-2, dim2=-1)
        diagonal += (kl_cov - fit_cov * old.total).unsqueeze(-1) * inverse.diagonal(dim1=-2, dim2=-1)
        return loc_grad, tril_grad, None
