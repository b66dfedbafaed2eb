"""The driver that every dual solver shares, and the solution that it returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from safe_components.estep.dual import dual_terms
from safe_components.estep.kkt import kkt_residual
from safe_components.estep.problem import (
    DualProblem,
    ScaledProblem,
    check_values,
    dual_problem,
    scale_problem,
    weight_dtype,
)

Infeasible = Literal["recover", "clip"]
# Tensors [...] for many problems; Python numbers for a single one, if the solver works with those.
_Number: TypeAlias = Tensor | float
_Vector: TypeAlias = Tensor | list[float]


@dataclass(frozen=True)
class DualSolution:
    """The E-step's answer, with the status of the solver.

    Leading dimensions ``...`` are those of the independent problems solved at once. A single batch of states
    has no leading dimension: then ``eta`` is ``[]`` and ``lam`` is ``[m]``. Numbers are float64 for every
    dtype of the estimates; ``weight`` has the dtype of ``q_reward``, or float32 if that has fewer digits.
    """

    weight: Tensor
    """``[..., B, K]``: ``q``, rows sum to 1."""
    eta: Tensor
    """``[...]``: temperature, the price of the KL ball, in the unit of the reward estimates."""
    lam: Tensor
    """``[..., m]``: price of each limit, reward per cost. Where ``recovered``, these are the multipliers of
    the recovery problem, which lie in ``[0, 1 / s_i]`` (``s_i`` is the spread of cost ``i``)."""
    kl: Tensor
    """``[...]``: ``mean_b KL(q_b ‖ p_b)``, nats."""
    expected_reward: Tensor
    """``[...]``: ``mean_b E_q Q_r``."""
    expected_cost: Tensor
    """``[..., m]``: ``mean_b E_q Q_c``, to be compared with the limits."""
    residual: Tensor
    """``[...]``: KKT residual relative to scale, see :func:`~safe_components.estep.kkt_residual`."""
    feasible: Tensor
    """``[...]`` bool: some ``q`` in the KL ball meets every limit."""
    recovered: Tensor
    """``[...]`` bool: infeasible, and ``weight`` minimizes the violation instead of maximizing the reward."""
    converged: Tensor
    """``[...]`` bool: the residual reached the solver's tolerance."""
    eta_at_min: Tensor
    """``[...]`` bool: the temperature's lower bound is active, so the KL ball does not bind."""
    lam_clipped: Tensor
    """``[..., m]`` bool: the multiplier is at its upper bound, so the limit may be exceeded."""
    iterations: Tensor
    """``[...]`` int: evaluations of the dual, including those that decided the feasibility."""


class Minimum(NamedTuple):
    """The scaled dual at the point where a solver stopped.

    The numbers of many problems are tensors ``[...]``; those of a single problem may be Python floats.
    """

    point: _Vector
    """``[..., 1 + m]``: ``(η, λ)``"""
    value: _Number
    """``[...]``"""
    gradient: _Vector
    """``[..., 1 + m]``"""
    expectation: _Vector
    """``[..., 1 + m]``: of the reward and of every cost under ``weight``"""
    residual: _Number
    """``[...]``: :func:`~safe_components.estep.kkt_residual`"""
    weight: Tensor
    """``[..., B, K]``"""
    iterations: Tensor | int
    """``[...]`` int: evaluations spent"""


def minimum_at(problem: ScaledProblem, point: Tensor, iterations: Tensor) -> Minimum:
    """Evaluate the dual at ``point`` ``[..., 1 + m]``, where a solver stopped.

    Example:
        >>> problem = scale_problem(dual_problem(torch.eye(2), torch.zeros(2, 2, 0), 0.1, torch.zeros(0)))
        >>> found = minimum_at(problem, torch.tensor([2.0]).double(), torch.tensor(1))
        >>> round(float(found.residual), 4)  # the KL exceeds ε by this share
        0.1094
    """
    terms = dual_terms(problem.dual, point[..., 0], point[..., 1:], hessian=False)
    residual = kkt_residual(terms.gradient, point, problem.lower, problem.upper, problem.dual.epsilon)
    return Minimum(point, terms.value, terms.gradient, terms.expectation, residual, terms.weight, iterations)


class DualSolver(nn.Module, ABC):
    """Solver of the E-step's dual

        min_{η, λ}  η ε + λᵀ d + η mean_b log Σ_k p_bk exp((Q_r − λᵀ Q_c)[b, k] / η)
        subject to  η >= η_min,  0 <= λ_i <= λ_max

    whose minimizer gives the ``q`` that maximizes ``mean_b E_q Q_r`` under ``mean_b E_q Q_c,i <= d_i`` and
    ``mean_b KL(q_b ‖ p_b) <= ε``.

    Where no ``q`` in the ball meets the limits, the dual decreases without bound as ``λ`` grows. Two answers
    are available:

    * ``infeasible="recover"``: the ``q`` that comes closest,
      ``min_q Σ_i (mean_b E_q Q_c,i − d_i)₊ / s_i`` subject to ``mean_b KL <= ε``. Its dual is the same
      function with ``Q_r = 0`` and ``λ_i`` in ``[0, 1 / s_i]``, so the same code solves it.
    * ``infeasible="clip"``: ``λ`` stays at ``λ_max``. That is the optimum with the limits replaced by an L1
      penalty, ``max_q mean_b E_q Q_r − λ_max Σ_i (mean_b E_q Q_c,i − d_i)₊``.

    By weak duality, any value of the recovery dual below ``-feasible_tol`` *proves* that the limits cannot be
    met; ``feasible`` reports this. The recovery dual is solved only if the first solve ends in a violation.

    Degenerate problems have defined answers. If the ball does not bind (``Q_r`` parallel to ``Q_c``, or ``ε``
    above the divergence of the best action), ``η`` stops at ``η_min``. Of all optimal ``q``, the one of least
    divergence is then returned, at most ``η_min ε`` below the optimum. If all rewards of a state are equal in
    every state, ``q`` is the least change of the prior that meets the limits. A cost that is the same for all
    actions leaves the problem with ``λ_i = 0``; if its value exceeds the limit, ``feasible`` is false.

    Args:
        tol: KKT residual (see :func:`~safe_components.estep.kkt.kkt_residual`) that counts as converged.
        eta_min: lower bound of ``η``, in spreads of the reward.
        lam_max: upper bound of every ``λ_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        feasible_tol: violation, in spreads of the costs, up to which limits count as met.
    """

    #: False if a call never waits for the device; then no argument is checked for its values.
    synchronizes = True

    def __init__(
        self,
        *,
        tol: float,
        eta_min: float = 1e-6,
        lam_max: float | None = None,
        feasible_tol: float = 1e-6,
    ) -> None:
        super().__init__()
        if not eta_min > 0:
            raise ValueError(f"eta_min={eta_min} must be positive (in spreads of the reward)")
        if lam_max is not None and not lam_max > 0:
            raise ValueError(f"lam_max={lam_max} must be positive (reward per cost), or None")
        if not tol > 0 or not feasible_tol > 0:
            raise ValueError(f"tol={tol} and feasible_tol={feasible_tol} must be positive")
        self.tol = tol
        self.eta_min = eta_min
        self.lam_max = lam_max
        self.feasible_tol = feasible_tol

    @abstractmethod
    def minimize(self, problem: ScaledProblem, start: Tensor) -> Minimum:
        """Minimize the scaled dual within its bounds, from ``start`` ``[..., 1 + m]``."""

    @torch.no_grad()
    def forward(
        self,
        q_reward: Tensor,
        q_cost: Tensor,
        epsilon: float | Tensor,
        cost_limits: float | Tensor,
        log_prior: Tensor | None = None,
        *,
        infeasible: Infeasible = "recover",
        init: tuple[Tensor, Tensor] | None = None,
    ) -> DualSolution:
        """Solve one E-step per leading index.

        Args:
            q_reward: ``[..., B, K]``, discounted reward of ``K`` particles of ``B`` states.
            q_cost: ``[..., B, K, m]``, discounted costs; ``[..., B, K]`` is read as ``m = 1``; ``m = 0``
                solves without constraint.
            epsilon: bound on ``mean_b KL(q_b ‖ p_b)``, nats, positive.
            cost_limits: ``[m]`` or ``[..., m]``, in the unit of ``q_cost``; may be negative.
            log_prior: ``[..., B, K]``, log-probabilities; ``-inf`` excludes an action; ``None`` is uniform.
            infeasible: ``"recover"`` or ``"clip"``.
            init: ``(eta [...], lam [..., m])`` to start from, such as the last batch's; entries that are
                not finite, and temperatures that are not positive, are replaced by the cold start.

        Raises:
            ValueError: for shapes that do not fit, or without states. A solver that synchronizes also
                refuses ``epsilon <= 0``, limits or estimates that are not finite, and a prior that excludes
                every action of a state.
        """
        dual = dual_problem(q_reward, q_cost, epsilon, cost_limits, log_prior)
        return self.solve(dual, infeasible, init, weight_dtype(q_reward))

    def solve(
        self,
        dual: DualProblem,
        infeasible: Infeasible = "recover",
        init: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> DualSolution:
        """Solve a problem that is arranged already, with weights of ``dtype``; see :meth:`forward`."""
        if infeasible not in get_args(Infeasible):
            raise ValueError(f"infeasible={infeasible!r} is not one of 'recover', 'clip'")
        if self.synchronizes:
            check_values(dual)
        recover = infeasible == "recover"
        problem = scale_problem(dual, self.eta_min, self.lam_max, stop_if_unreachable=recover)
        start = self._start(problem, init)
        limited = start.shape[-1] > 1
        least: Minimum | None = None
        if limited and not self.synchronizes:  # the host must not read whether the second is needed
            main, least = self._minimize_both(problem, start, *_recovery(problem))
        else:
            main = self.minimize(problem, start)

        doubt = main.residual > self.tol
        for slack in _entries(main.gradient)[1:]:
            doubt = doubt | (slack < -self.feasible_tol)
        nowhere = doubt & False
        if limited and least is None and (bool(doubt.any()) if isinstance(doubt, Tensor) else doubt):
            least = self.minimize(*_recovery(problem))
        if least is None:
            return self._solution(problem, main, nowhere, nowhere, dtype)
        unreachable = doubt & (least.value < -self.feasible_tol)
        if not recover and self.synchronizes:
            main = self._approach_from_recovery(
                problem, main, least, unreachable & (main.residual > self.tol)
            )
        recovered = unreachable if recover else nowhere
        found = _pick(recovered, least, main)._replace(iterations=main.iterations + least.iterations)
        solution = self._solution(problem, found, unreachable, recovered, dtype)
        # The recovery problem does not contain the reward.
        reward = (least.weight * problem.dual.features[..., 0, :, :]).sum(-1).mean(-1)
        reward = problem.center[..., 0] + problem.spread[..., 0] * reward
        reward = torch.where(solution.recovered, reward, solution.expected_reward)
        return replace(solution, expected_reward=reward)

    def _start(self, problem: ScaledProblem, init: tuple[Tensor, Tensor] | None) -> Tensor:
        """The point to start from, ``[..., 1 + m]``, scaled and within the bounds."""
        if init is None:
            start = _cold_start(problem.dual)
        else:
            unit = problem.spread / problem.spread[..., :1]
            lam = (init[1] * unit[..., 1:]).masked_fill(problem.constant[..., 1:], 0.0)
            eta = init[0].where(init[0] > 0.0, torch.nan)  # no temperature
            start = torch.cat([eta.unsqueeze(-1) / problem.spread[..., :1], lam], dim=-1)
            if not self.synchronizes or not math.isfinite(sum(start.flatten().tolist())):
                start = torch.where(start.isfinite(), start, _cold_start(problem.dual))
        return start.clamp(problem.lower, problem.upper)

    def _approach_from_recovery(
        self, problem: ScaledProblem, main: Minimum, least: Minimum, failed: Tensor | bool
    ) -> Minimum:
        """Solve again what failed on the long way to ``λ_max``, from the recovery's multipliers.

        Multiplied by a large ``λ_max``, they are nearly those of the L1 penalty.
        """
        if not (bool(failed.any()) if isinstance(failed, Tensor) else failed):
            return main
        cap = problem.upper[..., 1:]
        scale = torch.cat([cap.amax(-1, keepdim=True), cap], dim=-1)
        start = torch.as_tensor(least.point, dtype=scale.dtype, device=scale.device) * scale
        again = self.minimize(problem, start.clamp(problem.lower, problem.upper))
        return _pick(failed, again, main)._replace(iterations=main.iterations + again.iterations)

    def _minimize_both(
        self, one: ScaledProblem, start_one: Tensor, two: ScaledProblem, start_two: Tensor
    ) -> tuple[Minimum, Minimum]:
        """Solve two problems with the same prior and ball in one call, along a new leading dimension."""
        both = one._replace(
            dual=one.dual._replace(
                features=torch.stack([one.dual.features, two.dual.features]),
                cost_limits=torch.stack([one.dual.cost_limits, two.dual.cost_limits]),
            ),
            spread=torch.stack([one.spread, two.spread]),
            lower=torch.stack([one.lower, two.lower]),
            upper=torch.stack([one.upper, two.upper]),
            unreachable_below=torch.stack([one.unreachable_below, two.unreachable_below]),
        )
        found = self.minimize(both, torch.stack([start_one, start_two]))
        first, second = zip(*cast("tuple[Tensor, ...]", found), strict=True)
        return Minimum(*first), Minimum(*second)

    def _solution(
        self,
        problem: ScaledProblem,
        found: Minimum,
        unreachable: Tensor | bool,
        recovered: Tensor | bool,
        dtype: torch.dtype,
    ) -> DualSolution:
        """Return to the caller's units, with the same arithmetic on tensors and on Python numbers.

        For a single problem, some forty operations on two-element tensors would take as long as an evaluation
        of the dual.
        """
        numbers = not isinstance(found.point, Tensor)
        vectors = (problem.center, problem.spread, problem.constant, problem.limits, problem.upper)
        center, spread, constant, limits, upper = (_entries(vector, numbers) for vector in vectors)
        epsilon = float(problem.dual.epsilon) if numbers else problem.dual.epsilon
        eta, *lam = _entries(found.point)
        reward, *costs = (
            mean + s * x for mean, s, x in zip(center, spread, _entries(found.expectation), strict=True)
        )
        unit = _where(recovered, 1.0, spread[0])
        values = [
            eta * unit,
            epsilon - _entries(found.gradient)[0],
            reward,
            found.residual,
            *(price * unit / s for price, s in zip(lam, spread[1:], strict=True)),
            *costs,
        ]
        # Limits on costs that no q can move were taken out of the problem; here they count.
        for fixed, cost, limit in zip(constant[1:], center[1:], limits, strict=True):
            unreachable = unreachable | (fixed & (cost > limit + 1e-9 * abs(cost)))
        flags = [
            unreachable,
            recovered,
            found.residual <= self.tol,
            eta <= self.eta_min,
            *(_where(recovered, False, price >= cap) for price, cap in zip(lam, upper[1:], strict=True)),
        ]
        # One tensor of each kind; the fields are views of it.
        device, m = found.weight.device, len(lam)
        if numbers:
            value = torch.tensor(values, dtype=torch.float64, device=device)
            flag = torch.tensor(flags, device=device)
        else:
            value, flag = torch.stack(values, -1), torch.stack(flags, -1)
        temperature, divergence, expected_reward, residual = value[..., :4].unbind(-1)
        infeasible, in_recovery, converged, eta_at_min = flag[..., :4].unbind(-1)
        return DualSolution(
            weight=found.weight.to(dtype),
            eta=temperature,
            lam=value[..., 4 : 4 + m],
            kl=divergence.clamp_min(0.0),  # below 0 by rounding only
            expected_reward=expected_reward,
            expected_cost=value[..., 4 + m :],
            residual=residual,
            feasible=~infeasible,
            recovered=in_recovery,
            converged=converged,
            eta_at_min=eta_at_min,
            lam_clipped=flag[..., 4:],
            iterations=torch.as_tensor(found.iterations, device=device),
        )


def _recovery(problem: ScaledProblem) -> tuple[ScaledProblem, Tensor]:
    """The problem of the least sum of violations, in spreads, that the ball allows, and its start."""
    features = problem.dual.features.clone()
    features.select(-3, 0).zero_()
    upper = (~problem.constant).to(features.dtype)
    upper.select(-1, 0).fill_(torch.inf)
    start = upper.clone()
    start[..., 0] = (2.0 * problem.dual.epsilon).rsqrt()
    spread = problem.spread.clone()
    spread.select(-1, 0).fill_(1.0)
    recovery = problem._replace(
        dual=problem.dual._replace(features=features),
        spread=spread,
        upper=upper,
        unreachable_below=torch.full_like(problem.unreachable_below, -torch.inf),
    )
    return recovery, start


def _cold_start(problem: DualProblem) -> Tensor:
    """The optimum if the estimates were Gaussian: for the reward alone, or with a single cost that binds.

    In spreads, with correlation ``c``: ``η² = (1 − c²) / (2ε − d²)`` and ``λ = c − η d`` where both are
    positive. Otherwise, and for several costs, ``η² = 1 / (2ε)`` and ``λ = 0``.
    """
    features = problem.features
    point = torch.zeros(features.shape[:-2], dtype=features.dtype, device=features.device)
    eta = (2.0 * problem.epsilon).rsqrt().expand(point.shape[:-1])
    if point.shape[-1] == 2:
        reward, cost = features[..., 0, :, :], features[..., 1, :, :]
        if problem.log_prior is not None:
            correlation = (problem.log_prior.exp() * reward * cost).sum(-1).mean(-1)
        else:
            correlation = (reward * cost).mean((-2, -1))
        limit = problem.cost_limits[..., 0]
        bound = ((1.0 - correlation.square()) / (2.0 * problem.epsilon - limit.square())).sqrt()
        lam = correlation - bound * limit
        use = (lam > 0) & (bound > 0) & bound.isfinite()
        eta = torch.where(use, bound, eta)
        point[..., 1] = torch.where(use, lam, 0.0)
    point[..., 0] = eta
    return point


def _entries(vector: _Vector, numbers: bool = False) -> Sequence[Any]:
    """The entries of ``[..., n]``: tensors ``[...]``, or the Python numbers of a single problem."""
    if isinstance(vector, Tensor):
        return vector.tolist() if numbers else vector.unbind(-1)
    return vector


def _where(condition: Tensor | bool, this: float, other: Any) -> Any:
    """``this`` where the condition holds, ``other`` elsewhere; for tensors and for Python numbers."""
    if isinstance(condition, Tensor):
        return torch.where(condition, this, other)
    return this if condition else other


def _pick(condition: Tensor | bool, this: Minimum, other: Minimum) -> Minimum:
    """The same for minima."""
    if not isinstance(condition, Tensor):
        return this if condition else other

    def where(one: Tensor, two: Tensor) -> Tensor:
        return torch.where(condition.reshape(condition.shape + (1,) * (one.ndim - condition.ndim)), one, two)

    fields = zip(cast("tuple[Tensor, ...]", this), cast("tuple[Tensor, ...]", other), strict=True)
    return Minimum(*(where(one, two) for one, two in fields))
