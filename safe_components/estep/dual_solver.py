"""What all dual solvers share: scaling, bounds, the infeasible case and the answer."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from safe_components.estep.checks import check_shapes, check_values
from safe_components.estep.kkt import kkt_residual
from safe_components.estep.one_solution import one_solution
from safe_components.estep.recovery import Answer, Found, Minimum, Task, recovery, relief
from safe_components.estep.scaling import ScaledProblem, scale_problem
from safe_components.estep.solution import DualSolution
from safe_components.ops.dual import DualProblem, dual_problem

Infeasible = Literal["recover", "clip"]


class DualSolver(nn.Module, ABC):
    """Solver of the E-step's dual

        min_{eta, lam}  eta epsilon + lam^T d + eta mean_b log sum_k p_bk exp((Q_r - lam^T Q_c)[b, k] / eta)
        subject to      eta >= eta_min,  0 <= lam_i <= lam_max

    whose minimiser gives the ``q`` that maximises ``mean_b E_q Q_r`` under ``mean_b E_q Q_c,i <= d_i`` and
    ``mean_b KL(q_b || p_b) <= epsilon``.

    Where no ``q`` in the ball meets the limits, the dual falls without end as ``lam`` grows. Two answers:

    * ``infeasible="recover"``: the ``q`` that comes closest,
      ``min_q sum_i (mean_b E_q Q_c,i - d_i)_+ / s_i`` subject to ``mean_b KL <= epsilon``. Its dual is
      the same function with ``Q_r = 0`` and ``lam_i`` in ``[0, 1 / s_i]``, so the same code solves it.
    * ``infeasible="clip"``: ``lam`` stays at ``lam_max``. That is the optimum with the limits replaced by
      an L1 penalty, ``max_q mean_b E_q Q_r - lam_max sum_i (mean_b E_q Q_c,i - d_i)_+``.

    By weak duality any value of the recovery dual below ``-feasible_tol`` *proves* that the limits cannot be
    met; that is what ``feasible`` reports. It is only computed where the first solve ends in a violation.

    Degenerate problems have defined answers. If the ball does not bind (``Q_r`` parallel to ``Q_c``, or
    ``epsilon`` above the divergence of the best action), ``eta`` stops at ``eta_min`` and, of all optimal
    ``q``, the one of least divergence is returned, at most ``eta_min epsilon`` below the optimum. If all
    rewards of a state are equal in every state, ``q`` is the least change of the prior that meets the
    limits, the prior itself if it does. A cost that is the same for all actions leaves the problem with
    ``lam_i = 0``; if its value exceeds the limit, ``feasible`` is false.

    Args:
        tol: KKT residual (see :func:`~safe_components.estep.kkt.kkt_residual`) called converged.
        eta_min: lower bound of ``eta``, in spreads of the reward.
        lam_max: upper bound of every ``lam_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        feasible_tol: violation, in spreads of the costs, below which limits count as met.
    """

    #: False where a call may not wait for the device; then no argument is checked for its values.
    synchronises = True

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
    def minimise(
        self,
        problem: DualProblem,
        point: Tensor,
        lower: Tensor,
        upper: Tensor,
        spread: Tensor,
        enough: Tensor,
    ) -> Minimum:
        """Minimise the scaled dual from ``point`` ``[..., 1 + m]`` within ``[lower, upper]``.

        ``spread`` ``[..., 1 + m]`` is the unit of each estimate, for solvers that work in the caller's own.
        A value below ``enough`` ``[...]`` settles the matter: the solver may stop there.
        """

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
            epsilon: bound on ``mean_b KL(q_b || p_b)``, nats, positive.
            cost_limits: ``[m]`` or ``[..., m]``, discounted cost, not negative.
            log_prior: ``[..., B, K]``, log-probabilities; ``-inf`` excludes an action; ``None`` is uniform.
            infeasible: ``"recover"`` or ``"clip"``.
            init: ``(eta [...], lam [..., m])`` to start from, such as the last batch's; entries that are
                not finite are replaced by the cold start.

        Raises:
            ValueError: for shapes that do not fit, and (unless the solver may not synchronise) for
                ``epsilon <= 0``, negative limits, or estimates that are not finite.
        """
        if q_cost.ndim == q_reward.ndim:
            q_cost = q_cost.unsqueeze(-1)
        check_shapes(q_reward, q_cost, cost_limits, log_prior, infeasible)
        problem = dual_problem(q_reward, q_cost, epsilon, cost_limits, log_prior, torch.float64)
        if self.synchronises:
            check_values(problem)
        scaled = scale_problem(problem)
        problem = scaled.problem
        costs = problem.features.shape[-3] - 1

        spread = scaled.spread
        lower, upper = (bound.expand_as(spread) for bound in _bounds(costs, self.eta_min, spread.device))
        to_scaled = spread / spread[..., :1]  # lam_i' = lam_i s_i / s_r
        if self.lam_max is not None:
            upper = torch.cat([upper[..., :1], self.lam_max * to_scaled[..., 1:]], -1)
        if init is None:
            start = self._cold_start(problem)
        else:
            start = torch.cat([init[0].unsqueeze(-1) / spread[..., :1], init[1] * to_scaled[..., 1:]], dim=-1)
            if not self.synchronises or not math.isfinite(sum(start.flatten().tolist())):
                start = torch.where(start.isfinite(), start, self._cold_start(problem))
        start = start.clamp(lower, upper)

        if infeasible == "recover":
            # Below the worst reward there is, no feasible q is left: the limits cannot be met.
            enough = _least_reward(problem)
        else:
            enough = torch.full_like(start[..., 0], -torch.inf)
        task = Task(problem, start, lower, upper, spread, enough)
        rescue = None
        if self.synchronises or not costs:
            main = self.minimise(*task)
        else:  # both at once, for half the calls: nobody may look whether the second is needed
            rescue = relief(scaled, self.eta_min)
            main, least = self._minimise_both(task, rescue)
        if main.found is not None and not self._in_doubt(main.found, enough):
            return one_solution(task, scaled, main.found, self.tol, q_reward.dtype)
        terms = main.evaluated(problem)
        residual = kkt_residual(terms.gradient, main.point, lower, upper, problem.epsilon)
        violated = (-terms.gradient[..., 1:] > self.feasible_tol).any(-1)
        answer = Answer(
            point=main.point,
            gradient=terms.gradient,
            expectation=terms.expectation,
            weight=terms.weight,
            residual=residual,
            iterations=main.iterations,
        )
        in_doubt = violated | (residual > self.tol) | (terms.value < enough)
        infeasible_mask = torch.zeros_like(violated)
        recovered = infeasible_mask
        if costs and (not self.synchronises or bool(in_doubt.any())):
            if rescue is None:
                rescue = relief(scaled, self.eta_min)
                least = self.minimise(*rescue)
            recovered_answer, least_violation = recovery(scaled, rescue, least)
            infeasible_mask = in_doubt & (least_violation > self.feasible_tol)
            if infeasible == "recover":
                recovered = infeasible_mask
                answer = answer.where(~recovered, recovered_answer)
        return self._solution(scaled, answer, infeasible_mask, recovered, upper, q_reward.dtype)

    def _in_doubt(self, found: Found, enough: Tensor) -> bool:
        """Whether there is more to a single problem's answer than what was found."""
        violation = max((-slack for slack in found.gradient[1:]), default=0.0)
        met = violation <= self.feasible_tol and found.residual <= self.tol
        return not met or found.value < float(enough)

    def _minimise_both(self, first: Task, second: Task) -> tuple[Minimum, Minimum]:
        """Two tasks on the same prior and ball as one, along a new leading dimension."""
        problem, other = first.problem, second.problem
        features = torch.stack([problem.features, other.features])
        limits = torch.stack([problem.cost_limits.expand_as(first.start[..., 1:]), other.cost_limits])
        both = problem._replace(features=features, cost_limits=limits)
        rest = (torch.stack(pair) for pair in zip(first[1:], second[1:], strict=True))
        minimum = self.minimise(both, *rest)
        one, two = zip(minimum.point, minimum.iterations, strict=True)
        return Minimum(*one), Minimum(*two)

    def _cold_start(self, problem: DualProblem) -> Tensor:
        """The optimum if the estimates were Gaussian: of the reward alone, or with one cost that binds.

        In spreads, with correlation ``c``: ``eta^2 = (1 - c^2) / (2 epsilon - d^2)`` and ``lam = c - eta d``
        where both are positive; otherwise, and for several costs, ``eta^2 = 1 / (2 epsilon)``, ``lam = 0``.
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

    def _solution(
        self,
        scaled: ScaledProblem,
        answer: Answer,
        infeasible: Tensor,
        recovered: Tensor,
        upper: Tensor,
        dtype: torch.dtype,
    ) -> DualSolution:
        """Back to the units of the caller."""
        reward_unit = torch.where(recovered, 1.0, scaled.spread[..., 0])
        lam = answer.point[..., 1:] * reward_unit.unsqueeze(-1) / scaled.spread[..., 1:]
        expectation = scaled.center + scaled.spread * answer.expectation
        # Limits on costs that no q can move were taken out of the problem; here they count.
        size = scaled.center[..., 1:].abs() * 1e-9
        fixed = ~scaled.has_spread[..., 1:] & (scaled.center[..., 1:] > scaled.limits + size)
        return DualSolution(
            weight=answer.weight.to(dtype),
            eta=answer.point[..., 0] * reward_unit,
            lam=lam,
            kl=(scaled.problem.epsilon - answer.gradient[..., 0]).clamp_min(0.0),  # rounding only
            expected_reward=expectation[..., 0],
            expected_cost=expectation[..., 1:],
            residual=answer.residual,
            feasible=~(infeasible | fixed.any(-1)),
            recovered=recovered,
            converged=answer.residual <= self.tol,
            eta_at_min=answer.point[..., 0] <= self.eta_min,
            lam_clipped=(answer.point[..., 1:] >= upper[..., 1:]) & ~recovered.unsqueeze(-1),
            iterations=answer.iterations,
        )


@functools.cache  # made before a CUDA graph is captured, which allows no copy from the host
def _bounds(costs: int, eta_min: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[1 + m]`` each, scaled; of the multipliers where there is no `lam_max`."""
    lower = torch.tensor([eta_min, *[0.0] * costs], dtype=torch.float64, device=device)
    upper = torch.tensor([math.inf, *[1e6] * costs], dtype=torch.float64, device=device)
    return lower, upper


def _least_reward(problem: DualProblem) -> Tensor:
    """A little less than any ``q`` can have."""
    return problem.features[..., 0, :, :].amin(-1).mean(-1) - 1.0
