"""Trust regions of the M-step: how far it may move the policy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class TrustRegionTerms(NamedTuple):
    """Terms that a trust region adds to the M-step, all scalars.

    Attributes:
        penalty: ``α_μ C_μ + α_Σ C_Σ``, minimized by the policy; carries no gradient to the multipliers.
        dual_loss: loss of the multipliers, zero if there are none; carries no gradient to the policy.
        alpha_mean: ``α_μ``, detached.
        alpha_cov: ``α_Σ``, detached.
        capped: whether a multiplier has reached its cap, boolean.
    """

    penalty: Tensor
    dual_loss: Tensor
    alpha_mean: Tensor
    alpha_cov: Tensor
    capped: Tensor


def require_bounds(kl_mean: float, kl_cov: float) -> None:
    """Raise ValueError unless both bounds are positive and finite."""
    for name, bound in (("kl_mean", kl_mean), ("kl_cov", kl_cov)):
        if not 0.0 < bound < math.inf:
            raise ValueError(
                f"{name}={bound} must be positive and finite (nats); use NoTrustRegion alone for no bound"
            )


class HardTrustRegion(nn.Module):
    """Constraints ``C_μ ≤ ε_μ`` and ``C_Σ ≤ ε_Σ``, enforced by Lagrange multipliers.

        min_{α ≥ 0} max_θ  L(θ) + α_μ (ε_μ - C_μ(θ)) + α_Σ (ε_Σ - C_Σ(θ))

    The policy takes gradient steps on ``-L + α_μ C_μ + α_Σ C_Σ``, and the multipliers ``α = softplus(raw)``
    take steps on ``dual_loss = α_μ (ε_μ - C_μ) + α_Σ (ε_Σ - C_Σ)``. A multiplier grows while its
    constraint is violated and shrinks while it is slack. The slope of the dual is as small as ``ε``, so use
    an optimizer whose steps do not depend on the gradient's scale, such as Adam. A learning rate of 0.01-0.1
    suits ``raw``.

    Each forward call first projects ``raw`` so that ``min_alpha ≤ α ≤ max_alpha``. Without the lower end, a
    long slack phase would drive ``raw`` so far down that it returns late. The upper end is optional. A
    multiplier that has reached it is reported (``capped``), because the constraint is then no longer
    enforced, only penalized.

    Args:
        kl_mean: ``ε_μ``, bound on the divergence caused by the mean, in nats, mean over states.
        kl_cov: ``ε_Σ``, bound on the divergence caused by the covariance, in nats, mean over states.
        init_alpha: initial value of both multipliers, between ``min_alpha`` and ``max_alpha``.
        min_alpha: lower end of both, above 0.
        max_alpha: upper end of both; ``None`` means no cap.

    Raises:
        ValueError: if a bound is not positive or ``init_alpha`` lies outside its range.

    Source: MPO (Abdolmaleki et al. 2018, arXiv 1812.02256), equation for the constrained M-step with
    decoupled divergences; CVPO (Liu et al. 2022, arXiv 2201.11927), M-step.

    Example:
        >>> import torch
        >>> region = HardTrustRegion(kl_mean=0.01, kl_cov=0.001)
        >>> terms = region(torch.tensor(0.03), torch.tensor(0.0))
        >>> terms.penalty, terms.alpha_mean
        (tensor(0.0300), tensor(1.))
        >>> terms.dual_loss.backward()
        >>> region.raw.grad  # a descent step raises the mean's multiplier and lowers the covariance's
        tensor([-0.0126,  0.0006])
    """

    def __init__(
        self,
        kl_mean: float,
        kl_cov: float,
        *,
        init_alpha: float = 1.0,
        min_alpha: float = 1e-3,
        max_alpha: float | None = None,
    ) -> None:
        super().__init__()
        require_bounds(kl_mean, kl_cov)
        top = math.inf if max_alpha is None else max_alpha
        if not 0.0 < min_alpha <= init_alpha <= top or init_alpha == math.inf:
            raise ValueError(
                f"multipliers must satisfy 0 < min_alpha <= init_alpha <= max_alpha, got "
                f"min_alpha={min_alpha}, init_alpha={init_alpha}, max_alpha={max_alpha}"
            )
        # A buffer, so that members of a population may differ in it. Checkpoints need not hold it.
        self.bounds: Tensor
        self.register_buffer("bounds", torch.tensor([kl_mean, kl_cov], dtype=torch.float64), persistent=False)
        self.min_alpha, self.max_alpha = min_alpha, max_alpha
        self._raw_min = _inverse_softplus(min_alpha)
        self._raw_max = math.inf if max_alpha is None else _inverse_softplus(max_alpha)
        self.raw = nn.Parameter(torch.full((2,), _inverse_softplus(init_alpha)))

    def forward(self, kl_mean: Tensor, kl_cov: Tensor) -> TrustRegionTerms:
        """Penalty and dual loss at the divergences ``C_μ []`` and ``C_Σ []``."""
        with torch.no_grad():
            self.raw.copy_(self.raw.clamp(self._raw_min, self._raw_max))  # vmap has no clamp_
        alpha = nn.functional.softplus(self.raw)
        alpha_mean, alpha_cov = alpha.detach().unbind()
        slack = self.bounds.to(alpha.dtype) - torch.stack([kl_mean.detach(), kl_cov.detach()])
        return TrustRegionTerms(
            penalty=alpha_mean * kl_mean + alpha_cov * kl_cov,
            dual_loss=(alpha * slack).sum(),
            alpha_mean=alpha_mean,
            alpha_cov=alpha_cov,
            capped=(self.raw.detach() >= self._raw_max).any(),
        )


class SoftTrustRegion(nn.Module):
    """Penalties of fixed weight: the policy maximizes ``L - coef_mean C_μ - coef_cov C_Σ``.

    Args:
        coef_mean: weight of the divergence caused by the mean, per nat, at least 0.
        coef_cov: weight of the divergence caused by the covariance, per nat, at least 0.

    Raises:
        ValueError: if a weight is negative or not finite.

    Source: MPO (Abdolmaleki et al. 2018, arXiv 1806.06920), the penalized M-step.

    Example:
        >>> import torch
        >>> SoftTrustRegion(2.0, 10.0)(torch.tensor(0.5), torch.tensor(0.1)).penalty
        tensor(2.)
    """

    def __init__(self, coef_mean: float, coef_cov: float) -> None:
        super().__init__()
        for name, coef in (("coef_mean", coef_mean), ("coef_cov", coef_cov)):
            if not 0.0 <= coef < math.inf:
                raise ValueError(f"{name}={coef} must be at least 0 and finite")
        self.coefs: Tensor
        self.register_buffer(
            "coefs", torch.tensor([coef_mean, coef_cov], dtype=torch.float64), persistent=False
        )

    def forward(self, kl_mean: Tensor, kl_cov: Tensor) -> TrustRegionTerms:
        """Penalty at the divergences ``C_μ []`` and ``C_Σ []``."""
        coef_mean, coef_cov = self.coefs.to(kl_mean.dtype).unbind()
        return _fixed_terms(coef_mean * kl_mean + coef_cov * kl_cov, coef_mean, coef_cov)


class NoTrustRegion(nn.Module):
    """No restriction: the policy maximizes the weighted likelihood alone. Divergences are still reported.

    Example:
        >>> import torch
        >>> NoTrustRegion()(torch.tensor(0.5), torch.tensor(0.1)).penalty
        tensor(0.)
    """

    def forward(self, kl_mean: Tensor, kl_cov: Tensor) -> TrustRegionTerms:
        """Zero penalty at any divergences ``C_μ []`` and ``C_Σ []``."""
        zero = torch.zeros_like(kl_mean.detach())
        return _fixed_terms(zero, zero, zero)


def _fixed_terms(penalty: Tensor, alpha_mean: Tensor, alpha_cov: Tensor) -> TrustRegionTerms:
    zero = torch.zeros_like(penalty.detach())
    return TrustRegionTerms(
        penalty=penalty,
        dual_loss=zero,
        alpha_mean=alpha_mean.to(zero),
        alpha_cov=alpha_cov.to(zero),
        capped=torch.zeros_like(zero, dtype=torch.bool),
    )


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
