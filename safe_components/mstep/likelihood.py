"""The M-step's objective: likelihood of the weighted particles, and divergence from the old policy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from safe_components.ops import gaussian_kl


class DecoupledTerms(NamedTuple):
    """Means over the states, each ``[]``, in nats.

    Attributes:
        fit_mean: ``mean_b Σ_k q_bk log N(a_bk; μ, Σ_old)``.
        fit_cov: ``mean_b Σ_k q_bk log N(a_bk; μ_old, Σ)``.
        kl_mean: ``C_μ``.
        kl_cov: ``C_Σ``.
        entropy: mean entropy of ``N(μ, Σ)``, detached.
    """

    fit_mean: Tensor
    fit_cov: Tensor
    kl_mean: Tensor
    kl_cov: Tensor
    entropy: Tensor


def log_likelihood(action: Tensor, weight: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    """Weighted log-likelihood of particles under a Gaussian: ``mean_b Σ_k q_bk log N(a_bk; μ_b, Σ_b)``.

    At the new mean and covariance this is the M-step's joint objective. The decoupled objective is a sum of
    two such terms (see `decoupled_terms`).

    Args:
        action: ``[..., K, a]``.
        weight: ``q [..., K]``.
        loc: ``μ [..., a]``, in the unit of the action.
        scale_tril: lower Cholesky factor of ``Σ``, ``[..., a, a]``, positive diagonal.

    Returns:
        ``[]``, in nats.

    Example:
        >>> action, weight = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[0.5, 0.5]])
        >>> log_likelihood(action, weight, loc=torch.tensor([[2.0]]), scale_tril=torch.ones(1, 1, 1))
        tensor(-1.4189)
    """
    white = torch.linalg.solve_triangular(scale_tril, (action - loc.unsqueeze(-2)).mT, upper=False)
    constant = _log_diag(scale_tril) + 0.5 * loc.shape[-1] * math.log(2 * math.pi)
    log_prob = -0.5 * white.square().sum(-2) - constant.unsqueeze(-1)
    return torch.sum(weight * log_prob, -1).mean()


def decoupled_terms(
    loc_old: Tensor, scale_tril_old: Tensor, action: Tensor, weight: Tensor, loc: Tensor, scale_tril: Tensor
) -> DecoupledTerms:
    """Terms of the decoupled M-step: the likelihood and the divergence that each parameter causes alone.

    `MStepLoss` computes the same numbers with fewer operations. This function is the definition: it is
    differentiated automatically, any number of times, and a test holds the two equal.

    Args:
        loc_old: ``μ_old [..., a]``, in the unit of the action.
        scale_tril_old: ``L_old [..., a, a]``, lower Cholesky factor, positive diagonal.
        action: ``[..., K, a]``.
        weight: ``q [..., K]``.
        loc: ``μ [..., a]``.
        scale_tril: ``L [..., a, a]``, lower Cholesky factor, positive diagonal.

    Source: MPO (Abdolmaleki et al. 2018, arXiv 1812.02256), M-step with decoupled divergences.

    Example:
        >>> loc, eye = torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2)
        >>> particles = torch.zeros(1, 3, 2), torch.full((1, 3), 1 / 3)
        >>> terms = decoupled_terms(loc, eye, *particles, loc + 1.0, eye)
        >>> terms.kl_mean, terms.kl_cov
        (tensor(1.), tensor(0.))
    """
    kl_mean, kl_cov = gaussian_kl(loc_old, scale_tril_old, loc, scale_tril)
    entropy = _log_diag(scale_tril).mean() + 0.5 * loc.shape[-1] * (1.0 + math.log(2 * math.pi))
    return DecoupledTerms(
        fit_mean=log_likelihood(action, weight, loc, scale_tril_old),
        fit_cov=log_likelihood(action, weight, loc_old, scale_tril),
        kl_mean=kl_mean.mean(),
        kl_cov=kl_cov.mean(),
        entropy=entropy.detach(),
    )


def _log_diag(scale_tril: Tensor) -> Tensor:
    """``Σ_i log L_ii [...]``, half the log-determinant of the covariance."""
    return scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
