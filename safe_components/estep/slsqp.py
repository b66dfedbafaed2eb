"""SciPy's sequential quadratic programming on the E-step's dual."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from safe_components.estep.problem import ScaledProblem
from safe_components.estep.solve import DualSolver, Minimum, minimum_at

Array = NDArray[np.float64]


class SLSQPDualSolver(DualSolver):
    """SciPy's SLSQP, one problem after the other, on the CPU.

    Solves the problem of :class:`~safe_components.estep.solve.DualSolver`. It is kept for comparison:
    :meth:`published` has the settings of the first CVPO code. Estimates on another device are copied to the
    host, and the answer is copied back.

    Args:
        max_iterations: SLSQP's own iterations, each of several evaluations.
        ftol: change of the dual's value (in spreads of the reward) at which SLSQP stops.
        finite_differences: let SciPy difference the value instead of using the exact gradient.
        rescale: whether to work in units of the estimates' spreads or on the numbers as they come.
        tol: KKT residual that counts as converged.
        eta_min: lower bound of ``η``, in spreads of the reward.
        lam_max: upper bound of every ``λ_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        feasible_tol: violation, in spreads of the costs, up to which limits count as met.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> q_reward = torch.randn(100, 16, generator=generator)
        >>> q_cost = torch.rand(100, 16, 1, generator=generator)
        >>> solution = SLSQPDualSolver()(q_reward, q_cost, 0.1, torch.tensor([0.45]))
        >>> round(float(solution.expected_cost), 4), round(float(solution.kl), 4)
        (0.45, 0.1)
    """

    def __init__(
        self,
        *,
        max_iterations: int = 100,
        ftol: float = 1e-12,
        finite_differences: bool = False,
        rescale: bool = True,
        tol: float = 1e-4,
        eta_min: float = 1e-6,
        lam_max: float | None = None,
        feasible_tol: float = 1e-6,
    ) -> None:
        super().__init__(tol=tol, eta_min=eta_min, lam_max=lam_max, feasible_tol=feasible_tol)
        if max_iterations < 1:
            raise ValueError(f"max_iterations={max_iterations} must be at least 1")
        self.max_iterations = max_iterations
        self.ftol = ftol
        self.finite_differences = finite_differences
        self.rescale = rescale

    @classmethod
    def published(cls, lam_max: float | None = 1e5) -> SLSQPDualSolver:
        """Return the authors' settings: 10 iterations, finite differences, ``ftol`` 1e-3, no scaling.

        (They bound ``η`` and ``λ`` to ``[1e-6, 1e5]`` in the numbers' own units.)
        """
        return cls(max_iterations=10, ftol=1e-3, finite_differences=True, rescale=False, lam_max=lam_max)

    def minimize(self, problem: ScaledProblem, start: Tensor) -> Minimum:
        """See :meth:`~safe_components.estep.solve.DualSolver.minimize`."""
        dual, unit = problem.dual, torch.ones_like(problem.spread)  # unit of (η, λ)
        if not self.rescale:
            spread = problem.spread
            dual = dual._replace(
                features=dual.features * spread[..., None, None],
                cost_limits=dual.cost_limits * spread[..., 1:],
            )
            unit = torch.cat([spread[..., :1], spread[..., :1] / spread[..., 1:]], dim=-1)
        lead, (n, states, particles) = start.shape[:-1], dual.features.shape[-3:]

        def problems(value: Tensor, *shape: int) -> Array:
            """``value`` of each problem, ``[problems, *shape]``."""
            return value.expand((*lead, *shape)).reshape(lead.numel(), *shape).cpu().numpy()

        starts, lows, highs = (problems(x * unit, n) for x in (start, problem.lower, problem.upper))
        features = problems(dual.features, n, states, particles)
        epsilons, limits = problems(dual.epsilon), problems(dual.cost_limits, n - 1)
        priors = None if dual.log_prior is None else problems(dual.log_prior, states, particles)
        points, evaluations = [], []
        for i, (point, low, high) in enumerate(zip(starts, lows, highs, strict=True)):
            function = _NumpyDual(
                features[i], None if priors is None else priors[i], float(epsilons[i]), limits[i]
            )
            result = minimize(
                function.value if self.finite_differences else function.value_and_gradient,
                point,
                jac=None if self.finite_differences else True,
                method="SLSQP",
                bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
                options={"ftol": self.ftol, "maxiter": self.max_iterations},
            )
            points.append(np.clip(result.x, low, high))
            evaluations.append(function.evaluations)
        found = torch.from_numpy(np.stack(points)).to(start).reshape(start.shape) / unit
        return minimum_at(problem, found, torch.tensor(evaluations, device=start.device).reshape(lead))


class _NumpyDual:
    """The dual of a single problem, in the form that SciPy takes."""

    def __init__(self, features: Array, log_prior: Array | None, epsilon: float, limits: Array) -> None:
        self.reward, self.cost = features[0], features[1:]
        self.log_prior, self.epsilon, self.limits = log_prior, epsilon, limits
        self.evaluations = 0

    def _partition(self, x: Array) -> tuple[Array, Array, Array, float]:
        self.evaluations += 1
        combined = self.reward - np.tensordot(x[1:], self.cost, axes=1)
        z = combined / x[0]
        if self.log_prior is not None:
            z = z + self.log_prior
        highest = z.max(-1, keepdims=True)
        weight = np.exp(z - highest)
        total = weight.sum(-1, keepdims=True)
        log_partition = float((highest + np.log(total)).mean())
        if self.log_prior is None:
            log_partition -= math.log(z.shape[-1])
        return combined, weight, total, log_partition

    def value(self, x: Array) -> float:
        *_, log_partition = self._partition(x)
        return float(x[0] * (self.epsilon + log_partition) + x[1:] @ self.limits)

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        combined, weight, total, log_partition = self._partition(x)
        weight = weight / total
        expected = (weight * combined).sum(-1).mean() / x[0]
        costs = (weight * self.cost).sum(-1).mean(-1)
        gradient = np.concatenate([[self.epsilon - expected + log_partition], self.limits - costs])
        return float(x[0] * (self.epsilon + log_partition) + x[1:] @ self.limits), gradient
