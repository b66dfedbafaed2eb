"""Projected Newton on the E-step's dual."""

from __future__ import annotations

from typing import Any

import numpy as np
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
        # The dual is evaluated where the estimates are. What is done with its few derivatives costs calls,
        # not arithmetic: it goes to NumPy, whose calls are cheapest, unless the host may not look.
        host = self.synchronises
        xp: Any = np if host else torch

        def brought(*tensors: Tensor) -> tuple[Any, ...]:
            return tuple(tensor.cpu().numpy() if host else tensor for tensor in tensors)

        terms = dual_terms(problem, point[..., 0], point[..., 1:])
        value, gradient, hessian = brought(terms.value, terms.gradient, terms.hessian)
        at, low, high, enough, epsilon = brought(point, lower, upper, enough, problem.epsilon)
        eye = brought(torch.eye(point.shape[-1], dtype=point.dtype, device=point.device))[0]
        radius, iterations = xp.ones_like(value), xp.ones_like(value)
        here = True  # whether ``terms`` belong to ``at``; where the host may not look, nobody knows
        for _ in range(self.fixed_iterations or self.max_iterations):
            done = (kkt_residual(gradient, at, low, high, epsilon) <= self.tol) | (value < enough)
            if host and done.all():
                break
            step, size = _newton_step(xp, at, gradient, hessian, low, high, radius, eye)
            trial = xp.minimum(xp.maximum(at + step, low), high)
            place = torch.as_tensor(trial, device=point.device)
            terms = dual_terms(problem, place[..., 0], place[..., 1:])
            new_value, new_gradient, new_hessian = brought(terms.value, terms.gradient, terms.hessian)
            promised = (gradient * (trial - at)).sum(-1)
            rounding = 1e-14 * (1.0 + abs(value) + at.sum(-1))
            accept = (new_value <= value + 1e-4 * promised + rounding) & ~done
            vector, matrix = accept[..., None], accept[..., None, None]
            at, here = xp.where(vector, trial, at), host and bool(accept.all())
            value = xp.where(accept, new_value, value)
            gradient = xp.where(vector, new_gradient, gradient)
            hessian = xp.where(matrix, new_hessian, hessian)
            radius = xp.where(accept, (4.0 * radius).clip(max=1.0), 0.25 * xp.minimum(radius, size))
            iterations = iterations + xp.where(done, 0, 1)
        point = torch.as_tensor(at, dtype=point.dtype, device=point.device)
        return Minimum(
            point, torch.as_tensor(iterations, device=point.device).long(), terms if here else None
        )


def _newton_step(
    xp: Any, point: Any, gradient: Any, hessian: Any, lower: Any, upper: Any, radius: Any, eye: Any
) -> tuple[Any, Any]:
    """Newton's step for the free multipliers inside a box, and its size as a share of the full box.

    The box of radius 1 lets ``eta`` change tenfold and ``lam`` by ``10 (1 + lam)``. The costs' multipliers
    are eliminated first, so that they follow ``eta`` where the box cuts its step: along a ridge on
    which ``eta`` goes to its bound (parallel estimates) all move together.

    ``xp`` is ``numpy`` or ``torch``, whichever the arrays ``[..., 1 + m]`` are of.
    """
    free = xp.where(gradient > 0, point > lower, point < upper)
    mask = free * eye[0, 0]
    # A trace on the diagonal keeps singular Hessians solvable; a held multiplier stands alone with step 0.
    rows = hessian * (mask[..., None] * mask[..., None, :]) * (1.0 + 1e-12 * eye)
    rows = rows + ((1.0 - mask) + 1e-120)[..., None] * eye
    curvature = rows[..., 0, :1]
    rows = xp.concatenate([rows, (gradient * mask)[..., None]], -1)
    for i in range(1, gradient.shape[-1]):  # Gauss-Jordan: few rows, and no library call that waits
        pivot = rows[..., i : i + 1, :]
        rows = rows - (rows[..., i : i + 1] - eye[:, i : i + 1]) * (pivot / pivot[..., i : i + 1])
    eta = point[..., :1]
    room = radius[..., None] * eta
    # What elimination leaves of eta's curvature cannot be told from rounding below this share of it.
    left = xp.maximum(rows[..., 0, :1], 1e-10 * curvature)
    move = xp.maximum(-rows[..., 0, -1:] / left, xp.maximum(lower[..., :1] - eta, -0.9 * room))
    move = xp.minimum(move, 9.0 * room)
    step = xp.concatenate([move, -rows[..., 1:, -1] - rows[..., 1:, 0] * move], -1)
    eta_size = xp.maximum(move / 9.0, move / -0.9) / eta
    size = xp.concatenate([eta_size, abs(step[..., 1:]) / (10.0 + 10.0 * point[..., 1:])], -1)
    size = xp.amax(size, -1)
    share = (radius / size.clip(min=1e-300)).clip(max=1.0)
    return step * share[..., None], size * share
