"""A price of the costs for each limit of a range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safe_components.lagrangian.multipliers import ExponentiatedMultiplier
from safe_components.ops import episode_limits


class LimitPrices(nn.Module):
    """Prices as a function of the limit, for a policy that takes the limit as an input.

    The price has ``K`` knots between the ends of the range. Between two knots its logarithm is linear:

        log θ(d) = Σ_k h_k(d) log θ_k,     h_k: hat functions over the knots, which sum to 1

    Each knot has its own `ExponentiatedMultiplier`. It compares running means over the episodes near the
    knot, where an episode of limit ``d`` counts ``h_k(d)``:

        c_k <- c_k + (1 - exp(-w_k / memory)) (Σ_n h_k(d_n) c_n / w_k - c_k),      w_k = Σ_n h_k(d_n)

    and likewise for the limits themselves. The costs therefore keep the limits on average near each knot, not
    only over the whole range.

    Args:
        low: smallest limits, cost per episode, one number, or one per cost.
        high: largest limits, above ``low``.
        knots: ``K``, at least 2.
        memory: episodes near a knot after which an old episode weighs ``1/e`` as much.
        **multiplier: ``rate``, ``kp``, ``init`` and further arguments of `ExponentiatedMultiplier`.

    Attributes:
        prices: the multipliers of the knots, one after the other, ``[K m]``.
        cost: running means of the cost ``[K, m]``, NaN before the first episode near a knot.
        limit: running means of the limits ``[K, m]``, likewise.

    Raises:
        ValueError: if an argument is out of range; in the calls, if shapes do not fit.

    Source: a critic and a policy for a range of limits, Yao et al. 2023, arXiv 2310.03718; the knots are this
    library's.

    Example:
        >>> prices = LimitPrices(5.0, 75.0, knots=3, rate=1.0, kp=0.0, init=0.5)
        >>> prices.update(limits=torch.tensor([[5.0]]), costs=torch.tensor([[10.0]]))
        >>> prices(torch.tensor([[5.0], [22.5], [40.0]])).flatten()  # only the first knot has moved
        tensor([1.0000, 0.7071, 0.5000], dtype=torch.float64)
    """

    low: Tensor
    high: Tensor
    cost: Tensor
    limit: Tensor
    at: Tensor

    def __init__(
        self,
        low: float | Sequence[float] | Tensor,
        high: float | Sequence[float] | Tensor,
        *,
        knots: int = 4,
        memory: float = 5.0,
        **multiplier: float,
    ) -> None:
        super().__init__()
        first, last = episode_limits(low, "low"), episode_limits(high, "high")
        if first.shape != last.shape or not bool((first < last).all()):
            raise ValueError(f"low={first.tolist()} must be below high={last.tolist()}, one number per cost")
        if knots < 2:
            raise ValueError(f"knots={knots} must be at least 2")
        if not 0 < memory < math.inf:
            raise ValueError(f"memory={memory} must be positive and finite")
        self.knots, self.memory = knots, memory
        at = torch.linspace(0, 1, knots, dtype=torch.float64)
        limits = torch.lerp(first.expand(knots, -1), last.expand(knots, -1), at.unsqueeze(-1))
        self.prices = ExponentiatedMultiplier(limits.flatten(), **multiplier)
        self.register_buffer("low", first, persistent=False)
        self.register_buffer("high", last, persistent=False)
        self.register_buffer("cost", torch.full_like(limits, torch.nan))
        self.register_buffer("limit", torch.full_like(limits, torch.nan))
        self.register_buffer("at", limits, persistent=False)

    def hats(self, limits: Tensor) -> Tensor:
        """Return ``h(d) [..., K, m]`` of limits ``[..., m]``; limits outside the range count as its ends."""
        if limits.shape[-1:] != self.low.shape:
            raise ValueError(f"limits must be [..., {len(self.low)}], got shape {tuple(limits.shape)}")
        share = ((limits.to(self.low) - self.low) / (self.high - self.low)).clamp(0, 1) * (self.knots - 1)
        knot = torch.arange(self.knots, dtype=share.dtype, device=share.device).unsqueeze(-1)
        return (1 - (share.unsqueeze(-2) - knot).abs()).clamp_min(0)

    def forward(self, limits: Tensor) -> Tensor:
        """Return the prices ``[..., m]`` of limits ``[..., m]``."""
        log_price = self.prices.lam.view(self.knots, -1).log()
        return (self.hats(limits) * log_price).sum(-2).exp()

    @torch.no_grad()
    def update(self, limits: Tensor, costs: Tensor) -> None:
        """Follow the costs ``[n, m]`` of ``n >= 0`` episodes that had the limits ``[n, m]``."""
        if limits.shape != costs.shape or costs.ndim != 2:
            raise ValueError(
                f"limits and costs must be [n, m], got shapes {tuple(limits.shape)} and {tuple(costs.shape)}"
            )
        if not len(costs):
            return
        if not bool(costs.isfinite().all() and limits.isfinite().all()):
            raise ValueError(f"limits={limits.tolist()} and costs={costs.tolist()} must be finite")
        hats = self.hats(limits)
        weight = hats.sum(0)
        for mean, values in ((self.cost, costs), (self.limit, limits)):
            new = (hats * values.to(hats).unsqueeze(-2)).sum(0) / weight
            moved = torch.where(mean.isnan(), new, mean.lerp(new, -torch.expm1(-weight / self.memory)))
            mean.copy_(torch.where(weight > 0, moved, mean))
        # A knot without an episode so far counts as being at its limit.
        seen = ~self.cost.isnan()
        self.prices.set_cost_limits(torch.where(seen, self.limit, self.at).flatten())
        self.prices.update(torch.where(seen, self.cost, self.at).flatten())
