"""SciPy's sequential quadratic programming on the E-step's dual."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from safe_components.estep.dual_solver import DualSolver
from safe_components.estep.recovery import Minimum
from safe_components.ops.dual import DualProblem

Array = NDArray[np.float64]


class SLSQPDualSolver(DualSolver):
    """SciPy's SLSQP, one problem after the other, on the CPU.

    Solves the problem of :class:`~safe_components.estep.dual_solver.DualSolver`. Kept for comparison:
    :meth:`published` is what the first CVPO code does. Estimates on another device are copied to the
    host and the answer back.

    Args:
        max_iterations: SLSQP's own iterations, each of several evaluations.
        ftol: change of the dual's value (in spreads of the reward) at which SLSQP stops.
        finite_differences: let SciPy difference the value instead of using the exact gradient.
        rescale: work in units of the estimates' spreads; without it on the numbers as they come.
        tol: KKT residual called converged.
        eta_min: lower bound of ``eta``, in spreads of the reward.
        lam_max: upper bound of every ``lam_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        feasible_tol: violation, in spreads of the costs, below which limits count as met.

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
        """As the authors' code has it: 10 iterations, finite differences, ``ftol`` 1e-3, no scaling.

        (They bound ``eta`` and ``lam`` to ``[1e-6, 1e5]`` in the numbers' own units.)
        """
        return cls(max_iterations=10, ftol=1e-3, finite_differences=True, rescale=False, lam_max=lam_max)

    def minimise(
        self,
        problem: DualProblem,
        point: Tensor,
        lower: Tensor,
        upper: Tensor,
        spread: Tensor,
        enough: Tensor,
    ) -> Minimum:
        """See :meth:`DualSolver.minimise`."""
        shape = point.shape[:-1]
        unit = torch.ones_like(spread)  # of (eta, lam)
        if not self.rescale:
            problem = problem._replace(
                features=problem.features * spread[..., None, None],
                cost_limits=problem.cost_limits * spread[..., 1:],
            )
            unit = torch.cat([spread[..., :1], spread[..., :1] / spread[..., 1:]], dim=-1)
        point, lower, upper = point * unit, lower * unit, upper * unit
        n, states, particles = problem.features.shape[-3:]
        features = problem.features.reshape(-1, n, states, particles)
        limits = problem.cost_limits.expand(*shape, n - 1).reshape(shape.numel(), n - 1)
        epsilon = problem.epsilon.expand(shape).reshape(-1)
        log_prior = None if problem.log_prior is None else problem.log_prior.reshape(-1, states, particles)
        points, evaluations = [], []
        for i, (start, low, high) in enumerate(
            zip(point.reshape(-1, n), lower.reshape(-1, n), upper.reshape(-1, n), strict=True)
        ):
            dual = _NumpyDual(
                features[i].cpu().numpy(),
                None if log_prior is None else log_prior[i].cpu().numpy(),
                float(epsilon[i]),
                limits[i].cpu().numpy(),
            )
            result = minimize(
                dual.value if self.finite_differences else dual.value_and_gradient,
                start.cpu().numpy(),
                jac=None if self.finite_differences else True,
                method="SLSQP",
                bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
                options={"ftol": self.ftol, "maxiter": self.max_iterations},
            )
            points.append(np.clip(result.x, low.cpu().numpy(), high.cpu().numpy()))
            evaluations.append(dual.evaluations)
        found = torch.from_numpy(np.stack(points)).to(point).reshape(point.shape)
        return Minimum(found / unit, torch.tensor(evaluations, device=point.device).reshape(shape))


class _NumpyDual:
    """The dual of one problem as SciPy wants it."""

    def __init__(self, features: Array, log_prior: Array | None, epsilon: float, limits: Array) -> None:
        self.reward, self.cost = features[0], features[1:]
        self.log_prior, self.epsilon, self.limits = log_prior, epsilon, limits
        self.evaluations = 0

    def _parts(self, x: Array) -> tuple[Array, Array, Array, float]:
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
        *_, log_partition = self._parts(x)
        return float(x[0] * (self.epsilon + log_partition) + x[1:] @ self.limits)

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        combined, weight, total, log_partition = self._parts(x)
        weight = weight / total
        expected = (weight * combined).sum(-1).mean() / x[0]
        costs = (weight * self.cost).sum(-1).mean(-1)
        gradient = np.concatenate([[self.epsilon - expected + log_partition], self.limits - costs])
        return float(x[0] * (self.epsilon + log_partition) + x[1:] @ self.limits), gradient
