"""Projected Newton on the E-step's dual."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_components.estep._newton_host import minimize_one
from safe_components.estep.dual import dual_terms
from safe_components.estep.kkt import kkt_residual
from safe_components.estep.problem import ScaledProblem
from safe_components.estep.solve import DualSolver, Minimum, minimum_at
from safe_components.ops import runs_triton

# Compute capabilities that do half as many operations in float64 as in float32: P100, V100, A100, H100, B200.
_FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))


class NewtonDualSolver(DualSolver):
    """Projected Newton with exact derivatives, in float64, for all leading indices at once.

    Solves the problem of :class:`~safe_components.estep.solve.DualSolver`. Each iteration evaluates value,
    gradient and Hessian at one trial point. The point is accepted if the value falls as Armijo's rule asks;
    otherwise the step is shortened and tried again. A multiplier at a bound stays there while the gradient
    pushes it outward (Bertsekas 1982, SIAM J. Control Optim. 20(2)).

    With ``fixed_iterations`` the loop runs that often without reading from the device or copying to it, and
    no branch depends on a value, so a CUDA graph can capture the call. Problems that have converged stand
    still, hence both modes give the same answer. In that mode arguments are not checked for their values.
    Limits out of reach with ``infeasible="clip"`` need more evaluations, because ``λ`` has a long way to
    ``lam_max``. Of 400 random problems with two costs, 15 had not ``converged`` after 20 evaluations and 3
    after 30; with ``"recover"`` all had. Of 300 with two costs that are alike, it was 34 and 5, and 4 and 2.

    With ``fused`` the fixed mode of CUDA tensors is a single Triton kernel, in which one program solves one
    problem. It stops when its problem has converged. The tensor version is used where Triton is not
    installed, for more than 4 costs, for more than 4,096 particles, and on a GPU that is slow in float64
    (the consumer cards).

    Args:
        tol: KKT residual at which a problem counts as solved.
        max_iterations: evaluations after which the adaptive mode gives up (``converged`` is then false).
        fixed_iterations: evaluations of the mode without synchronization; ``None`` is the adaptive mode.
        fused: whether the fixed mode may be one Triton kernel on CUDA.
        eta_min: lower bound of ``η``, in spreads of the reward.
        lam_max: upper bound of every ``λ_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        feasible_tol: violation, in spreads of the costs, up to which limits count as met.

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
        fused: bool = True,
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
        self.fused = fused
        self.synchronizes = fixed_iterations is None

    def minimize(self, problem: ScaledProblem, start: Tensor) -> Minimum:
        """See :meth:`~safe_components.estep.solve.DualSolver.minimize`."""
        if self.synchronizes and start.ndim == 1:
            return minimize_one(problem, start, self.tol, self.max_iterations)
        if self.fused and self.fixed_iterations and _is_fusible(problem):
            # Imported here, because Triton may be missing.
            from safe_components.estep._newton_triton import minimize_all

            return minimize_all(problem, start, self.tol, self.fixed_iterations)
        dual, lower, upper, point = problem.dual, problem.lower, problem.upper, start
        value, gradient, hessian, *_ = dual_terms(dual, point[..., 0], point[..., 1:])
        radius = torch.ones_like(value)
        eye = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
        iterations = torch.ones_like(value, dtype=torch.long)
        for _ in range(self.fixed_iterations or self.max_iterations):
            done = kkt_residual(gradient, point, lower, upper, dual.epsilon) <= self.tol
            done = done | (value < problem.unreachable_below)
            if self.synchronizes and bool(done.all()):
                break
            step, size = _newton_step(point, gradient, hessian, lower, upper, radius, eye)
            trial = torch.minimum(torch.maximum(point + step, lower), upper)
            terms = dual_terms(dual, trial[..., 0], trial[..., 1:])
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
        return minimum_at(problem, point, iterations)


def _is_fusible(problem: ScaledProblem) -> bool:
    """Return whether a single Triton kernel can solve each problem, and does so quickly."""
    features = problem.dual.features
    if not runs_triton(features) or features.shape[-3] > 5 or features.shape[-1] > 4096:
        return False
    return torch.cuda.get_device_capability(features.device) in _FAST_FLOAT64


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

    The box of radius 1 lets ``η`` change tenfold and ``λ`` by ``10 (1 + λ)``. The costs' multipliers are
    eliminated first, so that they follow ``η`` where the box cuts its step. Along a ridge on which ``η`` goes
    to its bound (parallel estimates), all then move together.
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
    reach = radius.unsqueeze(-1) * eta
    # What elimination leaves of η's curvature cannot be told from rounding below this share of it.
    left = torch.maximum(rows[..., 0, :1], 1e-10 * diagonal[..., :1])
    move = torch.maximum(-rows[..., 0, -1:] / left, torch.maximum(lower[..., :1] - eta, -0.9 * reach))
    move = torch.minimum(move, 9.0 * reach)
    step = torch.cat([move, -rows[..., 1:, -1] - rows[..., 1:, 0] * move], dim=-1)
    # Along costs that are alike, one multiplier rises and one falls. At its bound the latter must not count.
    inside = torch.where(step > 0, point < upper, point > lower)
    step = torch.where(inside, step, 0.0)
    eta_size = torch.maximum(move / 9.0, move / -0.9) / eta
    size = torch.cat([eta_size, step[..., 1:].abs() / (10.0 + 10.0 * point[..., 1:])], dim=-1)
    size = size.amax(-1)
    share = (radius / size.clamp_min(1e-300)).clamp_max(1.0)
    return step * share.unsqueeze(-1), size * share
