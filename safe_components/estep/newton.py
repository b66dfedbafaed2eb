"""Projected Newton on the E-step's dual."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_components.estep.dual_solver import DualSolver, Minimum
from safe_components.estep.kkt import kkt_residual
from safe_components.ops.dual import DualProblem, dual_terms


class NewtonDualSolver(DualSolver):
    """Projected Newton with exact derivatives, in float64, for all leading indices at once.

    Solves the problem of :class:`~safe_components.estep.dual_solver.DualSolver`. Each iteration evaluates
    value, gradient and Hessian at one trial point and accepts it if the value falls as Armijo's rule asks;
    otherwise the step is shortened and tried again. Multipliers at a bound that the gradient pushes
    outwards are held there (Bertsekas 1982, SIAM J. Control Optim. 20(2)).

    With ``fixed_iterations`` the loop runs that often without asking the device for anything: no value is
    read by the host and nothing branches on one, so the call can be captured in a CUDA graph. Problems
    that have converged stand still, hence both modes give the same answer. In that mode arguments are
    not checked for their values.

    Args:
        tol: KKT residual at which a problem counts as solved.
        max_iterations: evaluations after which the adaptive mode gives up (``converged`` is then false).
        fixed_iterations: evaluations of the mode without synchronisation; ``None`` is the adaptive mode.
        eta_min: lower bound of ``eta``, in spreads of the reward.
        lam_max: upper bound of every ``lam_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        feasible_tol: violation, in spreads of the costs, below which limits count as met.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> q_reward = torch.randn(300, 64, generator=generator)
        >>> q_cost = torch.rand(300, 64, 1, generator=generator)
        >>> solution = NewtonDualSolver()(q_reward, q_cost, 0.1, torch.tensor([0.45]))
        >>> bool(solution.converged), bool(solution.feasible)
        (True, True)
        >>> round(float(solution.expected_cost), 6), round(float(solution.kl), 6)
        (0.45, 0.1)
    """

    def __init__(
        self,
        *,
        tol: float = 1e-9,
        max_iterations: int = 100,
        fixed_iterations: int | None = None,
        eta_min: float = 1e-6,
        lam_max: float | None = None,
        feasible_tol: float = 1e-6,
    ) -> None:
        super().__init__(tol=tol, eta_min=eta_min, lam_max=lam_max, feasible_tol=feasible_tol)
        for name, value in (("max_iterations", max_iterations), ("fixed_iterations", fixed_iterations)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.max_iterations = max_iterations
        self.fixed_iterations = fixed_iterations
        self.synchronises = fixed_iterations is None

    def minimise(self, problem: DualProblem, point: Tensor, lower: Tensor, upper: Tensor) -> Minimum:
        """See :meth:`DualSolver.minimise`."""
        terms = dual_terms(problem, point[..., 0], point[..., 1:])
        value, gradient, hessian = terms.value, terms.gradient, terms.hessian
        length = torch.ones_like(value)
        iterations = torch.ones_like(value, dtype=torch.long)
        for _ in range(self.fixed_iterations or self.max_iterations):
            done = kkt_residual(gradient, point, lower, upper, problem.epsilon) <= self.tol
            if self.synchronises and bool(done.all()):
                break
            step = _newton_step(point, gradient, hessian, lower, upper)
            # The dual is not defined at eta = 0: approach it by a factor of ten at a time.
            floor = torch.cat([torch.maximum(lower[..., :1], 0.1 * point[..., :1]), lower[..., 1:]], -1)
            trial = torch.minimum(torch.maximum(point + length.unsqueeze(-1) * step, floor), upper)
            terms = dual_terms(problem, trial[..., 0], trial[..., 1:])
            promised = (gradient * (trial - point)).sum(-1)
            rounding = 1e-14 * (1.0 + value.abs())
            accept = (terms.value <= value + 1e-4 * promised + rounding) & ~done
            vector, matrix = accept.unsqueeze(-1), accept[..., None, None]
            point = torch.where(vector, trial, point)
            value = torch.where(accept, terms.value, value)
            gradient = torch.where(vector, terms.gradient, gradient)
            hessian = torch.where(matrix, terms.hessian, hessian)
            length = torch.where(accept, 1.0, 0.25 * length)
            iterations = iterations + ~done
        return Minimum(point, iterations)


def _newton_step(point: Tensor, gradient: Tensor, hessian: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``-H_ff^-1 g_f`` for the free multipliers, 0 for those that a bound holds."""
    held = ((point <= lower) & (gradient > 0)) | ((point >= upper) & (gradient < 0))
    free = (~held).to(gradient.dtype)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    scale = free * (diagonal + 1e-300).clamp_min(1e-300).rsqrt()
    matrix = hessian * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    # Unit diagonal, plus a trace that keeps singular Hessians (parallel estimates) solvable.
    n = gradient.shape[-1]
    matrix = matrix + torch.diag_embed(1.0 + 1e-12 - matrix.diagonal(dim1=-2, dim2=-1))
    rows = torch.cat([matrix, -(gradient * scale).unsqueeze(-1)], dim=-1)
    for i in range(n):  # Gauss-Jordan: n is small, and no library call waits for the device
        pivot = rows[..., i : i + 1, :] / rows[..., i : i + 1, i : i + 1]
        rows = rows - rows[..., :, i : i + 1] * pivot
        rows = torch.cat([rows[..., :i, :], pivot, rows[..., i + 1 :, :]], dim=-2)
    return rows[..., -1] * scale
