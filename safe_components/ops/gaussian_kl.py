"""Kullback-Leibler divergence between Gaussians, split into the parts that mean and covariance cause."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_kl(
    loc_old: Tensor, scale_tril_old: Tensor, loc: Tensor, scale_tril: Tensor
) -> tuple[Tensor, Tensor]:
    """Decoupled divergences of a Gaussian policy from an older one.

    With the covariance ``Σ = L Lᵀ`` and the action size ``n``,

        kl_mean = KL(N(μ_old, Σ_old) ‖ N(μ, Σ_old)) = ½ (μ - μ_old)ᵀ Σ_old⁻¹ (μ - μ_old)
        kl_cov  = KL(N(μ_old, Σ_old) ‖ N(μ_old, Σ)) = ½ [log |Σ| / |Σ_old| - n + tr(Σ⁻¹ Σ_old)]

    Both are computed with triangular solves and log-diagonals. No determinant and no inverse is formed, so
    badly conditioned covariances keep their digits.

    Args:
        loc_old: ``μ_old [..., n]``, mean of the old policy, in the unit of the action.
        scale_tril_old: ``L_old [..., n, n]``, lower Cholesky factor of the old covariance, positive diagonal.
        loc: ``μ [..., n]``, mean of the new policy.
        scale_tril: ``L [..., n, n]``, lower Cholesky factor of the new covariance, positive diagonal.

    Returns:
        ``(kl_mean, kl_cov)``, each ``[...]``, in nats. Differentiable with respect to all four arguments.

    Raises:
        ValueError: if the shapes do not fit together.

    Source: MPO (Abdolmaleki et al. 2018, arXiv 1812.02256), and CVPO's M-step
    (Liu et al. 2022, arXiv 2201.11927).

    Example:
        >>> loc, eye = torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2)
        >>> gaussian_kl(loc, eye, loc + 1.0, eye)
        (tensor([1.]), tensor([0.]))
    """
    n = loc.shape[-1]
    if loc_old.shape[-1] != n or scale_tril.shape[-2:] != (n, n) or scale_tril_old.shape[-2:] != (n, n):
        raise ValueError(
            "expected loc [..., n] and scale_tril [..., n, n] with one n, got "
            f"loc_old {tuple(loc_old.shape)}, scale_tril_old {tuple(scale_tril_old.shape)}, "
            f"loc {tuple(loc.shape)}, scale_tril {tuple(scale_tril.shape)}"
        )
    shift = (loc - loc_old).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(scale_tril_old, shift, upper=False)
    kl_mean = 0.5 * whitened.square().sum((-2, -1))

    # tr(Σ⁻¹ Σ_old) = |M|² with M = L⁻¹ L_old lower triangular. Three large numbers would cancel here, so
    # r² - 1 - log r² is summed over the diagonal instead; each of these terms is at least 0.
    ratio = torch.linalg.solve_triangular(scale_tril, scale_tril_old, upper=False)
    log_diag = scale_tril_old.diagonal(dim1=-2, dim2=-1).log() - scale_tril.diagonal(dim1=-2, dim2=-1).log()
    diagonal = torch.expm1(2.0 * log_diag) - 2.0 * log_diag
    kl_cov = 0.5 * (ratio.tril(-1).square().sum((-2, -1)) + diagonal.sum(-1))
    return kl_mean, kl_cov
