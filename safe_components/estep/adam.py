"""Adam on the E-step's dual."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_components.estep.dual import dual_terms
from safe_components.estep.problem import ScaledProblem
from safe_components.estep.solve import DualSolver, Minimum, minimum_at


class AdamDualSolver(DualSolver):
    """A fixed number of projected Adam steps with exact gradients, for all leading indices at once.

    Solves the problem of :class:`~safe_components.estep.solve.DualSolver`. It is kept for comparison. Inside
    a warm-started :class:`~safe_components.estep.projector.EStepProjector`, ``steps=1`` is the scheme of some
    published codes, one step per batch, which follows the optimum at a distance instead of solving for it.
    (They step on the numbers as they come; here the units are the estimates' spreads.) The number of steps is
    fixed and the host reads nothing, so arguments are not checked for their values.

    The step size falls over a call from ``lr`` to ``lr / 1000`` along a cosine, in units of the temperature
    at which a Gaussian reward would fill the ball, ``s_r / √(2ε)``.

    Args:
        steps: Adam steps per call, which is also the number of evaluations of the dual.
        lr: first step size.
        tol: KKT residual that counts as converged; all steps are taken in any case.
        eta_min: lower bound of ``η``, in spreads of the reward.
        lam_max: upper bound of every ``λ_i``, reward per cost; ``None`` is ``1e6 s_r / s_i``.
        feasible_tol: violation, in spreads of the costs, up to which limits count as met.

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> q_reward = torch.randn(100, 16, generator=generator)
        >>> q_cost = torch.rand(100, 16, 1, generator=generator)
        >>> solution = AdamDualSolver()(q_reward, q_cost, 0.1, torch.tensor([0.45]))
        >>> round(float(solution.expected_cost), 3), round(float(solution.kl), 3)
        (0.45, 0.1)
    """

    synchronizes = False

    def __init__(
        self,
        *,
        steps: int = 500,
        lr: float = 0.1,
        tol: float = 1e-3,
        eta_min: float = 1e-6,
        lam_max: float | None = None,
        feasible_tol: float = 1e-6,
    ) -> None:
        super().__init__(tol=tol, eta_min=eta_min, lam_max=lam_max, feasible_tol=feasible_tol)
        if steps < 1 or not lr > 0:
            raise ValueError(f"steps={steps} must be at least 1 and lr={lr} positive")
        self.steps = steps
        self.lr = lr

    def minimize(self, problem: ScaledProblem, start: Tensor) -> Minimum:
        """See :meth:`~safe_components.estep.solve.DualSolver.minimize`."""
        point = start
        unit = (2.0 * problem.dual.epsilon).rsqrt().unsqueeze(-1)
        first, second = torch.zeros_like(point), torch.zeros_like(point)
        for step in range(1, self.steps + 1):
            gradient = dual_terms(problem.dual, point[..., 0], point[..., 1:], hessian=False).gradient
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient.square()
            direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            progress = (step - 1) / self.steps
            lr = self.lr * (1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * progress)))
            point = torch.minimum(torch.maximum(point - lr * unit * direction, problem.lower), problem.upper)
        return minimum_at(problem, point, torch.full(point.shape[:-1], self.steps, device=point.device))
