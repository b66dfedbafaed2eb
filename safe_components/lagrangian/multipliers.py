"""Lagrange multipliers that follow the costs of the latest episodes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safe_components.ops import episode_limits

MAX_MULTIPLIER = 20.0
"""default upper bound of a multiplier, in reward per cost

At this price the reward has a weight of 1 / 21 in a loss that is divided by 1 + λ, so a higher price changes
little. It would only take longer to come down after the costs have fallen (wind-up).
"""


class Multiplier(nn.Module, ABC):
    """Abstract base: the multipliers ``λ [m]``, their limits and the checks. Subclasses define ``update``.

    Args:
        cost_limits: ``d``, cost per episode, one per cost signal.
        init: first multiplier, reward per cost, at least 0.
        max_value: upper bound, reward per cost; None means unbounded.

    Attributes:
        lam: ``λ [m]``, a buffer, float64.
        cost_limits: ``d [m]``, a buffer, float64.
        clipped: ``[m]``, whether the last update reached ``max_value``, a buffer, bool.

    Raises:
        ValueError: if an argument is out of range.
    """

    cost_limits: Tensor
    lam: Tensor
    clipped: Tensor

    def __init__(
        self, cost_limits: float | Sequence[float] | Tensor, init: float, max_value: float | None
    ) -> None:
        super().__init__()
        limits = episode_limits(cost_limits, "cost_limits")
        if max_value is not None and not max_value > 0:
            raise ValueError(f"max_value={max_value} must be positive, or None")
        if not (0 <= init < math.inf and (max_value is None or init <= max_value)):
            raise ValueError(f"init={init} must be finite and lie in [0, max_value={max_value}]")
        self.max_value = max_value
        self.register_buffer("cost_limits", limits)
        self.register_buffer("lam", torch.full_like(limits, init))
        self.register_buffer("clipped", torch.zeros_like(limits, dtype=torch.bool))

    def set_cost_limits(self, cost_limits: float | Sequence[float] | Tensor) -> None:
        """Replace the limits, for example by a schedule; their number must not change."""
        limits = episode_limits(cost_limits, "cost_limits")
        if limits.shape != self.cost_limits.shape:
            raise ValueError(f"{limits.numel()} cost_limits cannot replace {self.cost_limits.numel()}")
        self.cost_limits.copy_(limits)

    @abstractmethod
    def update(self, episode_cost: float | Sequence[float] | Tensor) -> Tensor:
        """Follow the mean cost ``[m]`` of the latest episodes; returns ``λ [m]``."""

    def forward(self) -> Tensor:
        """Return a copy of the current multipliers, ``[m]``."""
        return self.lam.clone()

    def _observed(self, episode_cost: float | Sequence[float] | Tensor) -> Tensor:
        cost = torch.as_tensor(episode_cost, dtype=torch.float64, device=self.lam.device).detach()
        m = self.lam.shape[0]
        if cost.ndim > 1:
            raise ValueError(
                f"episode_cost must be the mean over episodes, [m] = [{m}], got shape {tuple(cost.shape)}"
            )
        cost = cost.reshape(-1)
        if cost.shape[0] != m:
            raise ValueError(f"episode_cost holds {cost.shape[0]} costs for {m} cost_limits")
        if not bool(cost.isfinite().all()):
            raise ValueError(f"episode_cost={cost.tolist()} must be finite")
        return cost

    def _set(self, lam: Tensor) -> Tensor:
        if self.max_value is None:
            self.lam.copy_(lam)
        else:
            self.clipped.copy_(lam >= self.max_value)
            self.lam.copy_(lam.clamp_max(self.max_value))
        return self.lam.clone()


class GradientMultiplier(Multiplier):
    """Projected gradient ascent on the Lagrangian ``max_π J_r - Σ_i λ_i (J_c,i - d_i)``.

        λ_i <- min([λ_i + lr (J_c,i - d_i)]_+, max_value)

    ``J_c`` is the undiscounted cost of an episode, averaged over the latest episodes. The critic's
    estimate at replayed states would move the multiplier by the costs of past policies.

    Args:
        cost_limits: ``d``, cost per episode, one per cost signal.
        lr: step size, multiplier per cost.
        init: first multiplier, at least 0.
        max_value: upper bound, which keeps ``λ`` from winding up (see :class:`PIDMultiplier`); None means
            unbounded. :attr:`clipped` ``[m]`` tells where the last update reached it.

    Attributes:
        lam: ``λ [m]``, the multipliers (a buffer, float64, as is all state here).

    Raises:
        ValueError: if an argument is out of range; in ``update``, if the costs are not ``[m]`` or not finite.

    Example:
        >>> multiplier = GradientMultiplier(cost_limits=25.0, lr=0.1)
        >>> multiplier.update(30.0)
        tensor([0.5000], dtype=torch.float64)
        >>> multiplier.update(10.0)
        tensor([0.], dtype=torch.float64)
    """

    def __init__(
        self,
        cost_limits: float | Sequence[float] | Tensor,
        lr: float,
        *,
        init: float = 0.0,
        max_value: float | None = MAX_MULTIPLIER,
    ) -> None:
        super().__init__(cost_limits, init, max_value)
        if not 0 < lr < math.inf:
            raise ValueError(f"lr={lr} must be positive and finite")
        self.lr = lr

    @torch.no_grad()
    def update(self, episode_cost: float | Sequence[float] | Tensor) -> Tensor:
        """Take one step along the mean cost ``[m]`` of the latest episodes; returns ``λ [m]``."""
        error = self._observed(episode_cost) - self.cost_limits
        return self._set((self.lam + self.lr * error).clamp_min(0.0))


class PIDMultiplier(Multiplier):
    """Multiplier under proportional, integral and derivative control.

    With ``δ = J_c - d``, and ``EMA`` an exponential moving average that starts at its first value,

        I <- min([I + ki δ]_+, max_value)
        λ  = min([kp EMA(δ) + I + kd (EMA(J_c) - EMA(J_c) of `delay` updates ago)_+]_+, max_value)

    The integral term alone (``kp = kd = 0``) is :class:`GradientMultiplier`. The proportional term damps
    its oscillation. The derivative term acts on a rising cost before it passes the limit. During the first
    ``delay`` updates, the oldest average stands in for the delayed one.

    The bound on the integral is the anti-windup. Costs far over the limit raise ``I`` faster than costs below
    it can lower it: at most by ``ki d`` per update. Unbounded, 200 updates at a cost of 100 and a limit of 25
    take 600 updates without cost to undo, during which the policy learns nothing about the reward. With the
    bound it takes at most ``max_value / (ki d)`` updates, 80 with the defaults. A policy that needs a higher
    price is reported by :attr:`clipped`; raise the bound where a cost of 1 is worth more reward than that.

    Args:
        cost_limits: ``d``, cost per episode, one per cost signal.
        kp: proportional gain.
        ki: integral gain.
        kd: derivative gain.
        ema_proportional: weight of the past in the average of ``δ``, in ``[0, 1)``; 0 means no averaging.
        ema_derivative: weight of the past in the average of ``J_c``, likewise.
        delay: number of updates between the two averages that the derivative compares, at least 1.
        init: first value of the integral.
        max_value: upper bound of ``λ`` and of ``I``; None means unbounded. :attr:`clipped` ``[m]`` tells
            where the last update reached it.

    Attributes:
        lam: ``λ [m]``, the multipliers. ``integral``, ``error_ema``, ``cost_ema`` and ``past_costs`` are
            the controller's state. All are buffers, so training resumes from a checkpoint exactly.

    Raises:
        ValueError: if an argument is out of range; in ``update``, if the costs are not ``[m]`` or not finite.

    Source: Stooke et al. 2020, arXiv 2007.03964, algorithm 2.

    Example:
        >>> multiplier = PIDMultiplier(cost_limits=25.0, kp=0.1, ki=0.01, kd=0.0, ema_proportional=0.0)
        >>> multiplier.update(35.0)
        tensor([1.1000], dtype=torch.float64)
    """

    integral: Tensor
    error_ema: Tensor
    cost_ema: Tensor
    past_costs: Tensor
    updates: Tensor

    def __init__(
        self,
        cost_limits: float | Sequence[float] | Tensor,
        kp: float = 0.1,
        ki: float = 0.01,
        kd: float = 0.01,
        *,
        ema_proportional: float = 0.95,
        ema_derivative: float = 0.95,
        delay: int = 10,
        init: float = 0.0,
        max_value: float | None = MAX_MULTIPLIER,
    ) -> None:
        super().__init__(cost_limits, init, max_value)
        for name, gain in (("kp", kp), ("ki", ki), ("kd", kd)):
            if not 0 <= gain < math.inf:
                raise ValueError(f"{name}={gain} must be finite and at least 0")
        for name, past in (("ema_proportional", ema_proportional), ("ema_derivative", ema_derivative)):
            if not 0 <= past < 1:
                raise ValueError(f"{name}={past} must lie in [0, 1)")
        if delay < 1:
            raise ValueError(f"delay={delay} must be at least 1 update")
        self.kp, self.ki, self.kd = kp, ki, kd
        self.ema_proportional, self.ema_derivative = ema_proportional, ema_derivative
        self.register_buffer("integral", self.lam.clone())
        self.register_buffer("error_ema", torch.zeros_like(self.lam))
        self.register_buffer("cost_ema", torch.zeros_like(self.lam))
        # past_costs[0] is the average of `delay` updates ago.
        self.register_buffer("past_costs", self.lam.new_zeros(delay, self.lam.shape[0]))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long, device=self.lam.device))

    @torch.no_grad()
    def update(self, episode_cost: float | Sequence[float] | Tensor) -> Tensor:
        """Follow the mean cost ``[m]`` of the latest episodes; returns ``λ [m]``."""
        cost = self._observed(episode_cost)
        error = cost - self.cost_limits
        if int(self.updates) == 0:
            self.error_ema.copy_(error)
            self.cost_ema.copy_(cost)
            self.past_costs.copy_(cost.expand_as(self.past_costs))
        else:
            self.error_ema.lerp_(error, 1.0 - self.ema_proportional)
            self.cost_ema.lerp_(cost, 1.0 - self.ema_derivative)
        self.updates += 1
        self.integral.add_(self.ki * error).clamp_min_(0.0)
        if self.max_value is not None:
            self.integral.clamp_max_(self.max_value)
        rise = (self.cost_ema - self.past_costs[0]).clamp_min(0.0)
        self.past_costs.copy_(torch.cat([self.past_costs[1:], self.cost_ema.unsqueeze(0)]))
        return self._set((self.kp * self.error_ema + self.integral + self.kd * rise).clamp_min(0.0))


class ExponentiatedMultiplier(Multiplier):
    """Multiplier whose logarithm is under proportional and integral control of the logarithm of the cost.

        e = clip(log(J_c / d), -1/2, max_error)                        for J_c > 0 = d: e = max_error
        I <- clip(I exp(rate e), min_value, max_value exp(-kp [e]_+))
        λ  = min(I exp(kp e), max_value)

    A step changes ``λ`` by a factor, not by an amount. The gains therefore need no unit: they are the same
    for costs of 0.001 and of 1,000, and for multipliers of any size. ``max_error`` keeps one episode with an
    extreme cost from moving ``λ`` far. The lower end ``-1/2`` lets ``λ`` fall more slowly than it rises,
    because a cost of zero does not tell how far below the limit the policy is. The integral cannot wind up:
    while ``λ`` is at ``max_value`` it does not grow, and it yields to the proportional factor. With
    ``kp = 0`` this is mirror ascent on the dual with the entropy as mirror map, the exponentiated gradient.
    The proportional factor damps the oscillation that the delay between ``λ`` and the cost of the episodes
    would cause.

    Args:
        cost_limits: ``d``, cost per episode, one per cost signal.
        rate: change of ``log I`` by an update at ``e`` times the limit, positive.
        kp: change of ``log λ`` at ``e`` times the limit, at least 0.
        init: first value of the integral, in ``[min_value, max_value]``.
        min_value: lower bound of the integral, positive.
        max_value: upper bound of ``I`` and ``λ``, at least ``min_value``. :attr:`clipped` ``[m]`` tells where
            the last update reached it.
        max_error: upper bound of ``e``, positive; 2 is a cost of 7.4 times the limit.

    Attributes:
        lam: ``λ [m]``, the multipliers. ``integral [m]`` is the controller's state. Both are buffers.

    Raises:
        ValueError: if an argument is out of range, a limit is negative; in ``update``, if the costs are not
            ``[m]`` or not finite.

    Source: Kivinen and Warmuth 1997, "Exponentiated gradient versus gradient descent for linear
    predictors", for the integral; the proportional term as in Stooke et al. 2020 (arXiv 2007.03964), here on
    the logarithm.

    Example:
        >>> multiplier = ExponentiatedMultiplier(25.0, rate=1.0, kp=0.0)
        >>> multiplier.update(50.0)  # twice the limit
        tensor([1.], dtype=torch.float64)
        >>> multiplier.update(25.0)  # at the limit
        tensor([1.], dtype=torch.float64)
    """

    integral: Tensor

    def __init__(
        self,
        cost_limits: float | Sequence[float] | Tensor,
        rate: float = 0.03,
        kp: float = 0.5,
        *,
        init: float = 0.5,
        min_value: float = 0.1,
        max_value: float | None = 2.0,
        max_error: float = 2.0,
    ) -> None:
        super().__init__(cost_limits, init, max_value)
        if not 0 < rate < math.inf:
            raise ValueError(f"rate={rate} must be positive and finite")
        if not 0 <= kp < math.inf:
            raise ValueError(f"kp={kp} must be finite and at least 0")
        if not 0 < min_value <= init:
            raise ValueError(f"min_value={min_value} must be positive and at most init={init}")
        if not 0 < max_error < math.inf:
            raise ValueError(f"max_error={max_error} must be positive and finite")
        self.rate, self.kp, self.min_value, self.max_error = rate, kp, min_value, max_error
        self.register_buffer("integral", self.lam.clone())

    @torch.no_grad()
    def update(self, episode_cost: float | Sequence[float] | Tensor) -> Tensor:
        """Follow the mean cost ``[m]`` of the latest episodes; returns ``λ [m]``."""
        cost = self._observed(episode_cost)
        if bool((cost < 0).any()):
            raise ValueError(f"episode_cost={cost.tolist()} must be at least 0")
        error = torch.where(cost == self.cost_limits, 0.0, (cost / self.cost_limits).log())
        error = error.clamp(-0.5, self.max_error)
        factor = (self.kp * error).exp()
        integral = (self.integral * (self.rate * error).exp()).clamp_min(self.min_value)
        lam = self._set(integral * factor)
        if self.max_value is not None:
            integral = integral.minimum(self.max_value / factor.clamp_min(1.0)).clamp_min(self.min_value)
        self.integral.copy_(integral)
        return lam
