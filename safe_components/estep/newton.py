"""Projected Newton on the E-step's dual."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_components.estep.dual_solver import DualSolver
from safe_components.estep.kkt import kkt_residual
from safe_components.estep.newton_one import minimise_one
from safe_components.estep.recovery import Minimum
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
        if self.synchronises and point.ndim == 1:
            return minimise_one(problem, point, lower, upper, enough, self.tol, self.max_iterations)
        terms = dual_terms(problem, point[..., 0], point[..., 1:])
        value, gradient, hessian = terms.value, terms.gradient, terms.hessian
        radius = torch.ones_like(value)
        eye = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
        iterations = torch.ones_like(value, dtype=torch.long)
        for _ in range(self.fixed_iterations or self.max_iterations):
            done = kkt_residual(gradient, point, lower, upper, problem.epsilon) <= self.tol
            done = done | (value < enough)
            if self.synchronises and bool(done.all()):
                break
            step, size = _newton_step(point, gradient, hessian, lower, upper, radius, eye)
            trial = torch.minimum(torch.maximum(point + step, lower), upper)
            terms = dual_terms(problem, trial[..., 0], trial[..., 1:])
            promised = (gradient * (trial - point)).sum(-1)
            rounding = 1e-14 * (1.0 + value.abs() + point.sum(-1))
            accept = (terms.value <= value + 1e-4 * promised + rounding) & ~done
            vector, matrix = accept.unsqueeze(-1), accept[..., None, None]
            point = torch.where(vector, trial, point)
            value = torch.where(accept, terms.value, value)
            gradient = torch.where(vector, terms.gradient, gradient)
            hessian = torch.where(matrix, terms.hessian, hessian)
            radius = torch.where(accept, (4.0 * radius).clamp_max(1.0), 0.25 * torch.minimum(radius, size))
            iterations = iterations + ~done
        return Minimum(point, iterations)


def _newton_step(
    point: Tensor,
    gradient: Tensor,
    hessian: Tensor,
    lower: Tensor,
    upper: Tensor,
    radius: Tensor,
    eye: Tensor,
) -> tuple[Tensor, Tensor]:
    """Newton's step for the free multipliers inside a box, and its size as a share of the full box.

    The box of radius 1 lets ``eta`` change tenfold and ``lam`` by ``10 (1 + lam)``. The costs' multipliers
    are eliminated first, so that they follow ``eta`` where the box cuts its step: along a ridge on
    which ``eta`` goes to its bound (parallel estimates) all move together.
    """
    free = torch.where(gradient > 0, point > lower, point < upper)
    mask = free.to(gradient.dtype)
    # A trace on the diagonal keeps singular Hessians solvable; a held multiplier stands alone with step 0.
    curvature = hessian.diagonal(dim1=-2, dim2=-1)
    diagonal = torch.where(free, curvature * (1.0 + 1e-12) + 1e-120, 1.0)
    rows = torch.where(eye > 0, diagonal.unsqueeze(-1), hessian * (mask.unsqueeze(-1) * mask.unsqueeze(-2)))
    rows = torch.cat([rows, (gradient * mask).unsqueeze(-1)], dim=-1)
    for i in range(1, gradient.shape[-1]):  # Gauss-Jordan: few rows, and no library call that waits
        pivot = rows[..., i : i + 1, :]
        rows = rows - (rows[..., i : i + 1] - eye[:, i : i + 1]) * (pivot / pivot[..., i : i + 1])
    eta = point[..., :1]
    room = radius.unsqueeze(-1) * eta
    # What elimination leaves of eta's curvature cannot be told from rounding below this share of it.
    left = torch.maximum(rows[..., 0, :1], 1e-10 * diagonal[..., :1])
    move = torch.maximum(-rows[..., 0, -1:] / left, torch.maximum(lower[..., :1] - eta, -0.9 * room))
    move = torch.minimum(move, 9.0 * room)
    step = torch.cat([move, -rows[..., 1:, -1] - rows[..., 1:, 0] * move], dim=-1)
    eta_size = torch.maximum(move / 9.0, move / -0.9) / eta
    size = torch.cat([eta_size, step[..., 1:].abs() / (10.0 + 10.0 * point[..., 1:])], dim=-1)
    size = size.amax(-1)
    share = (radius / size.clamp_min(1e-300)).clamp_max(1.0)
    return step * share.unsqueeze(-1), size * share
