"""The E-step with its multipliers given from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from safe_components.estep.checks import check_shapes
from safe_components.estep.dual_solver import DualSolver, Infeasible
from safe_components.estep.newton import NewtonDualSolver
from safe_components.estep.solution import DualSolution


class GivenMultiplierSolver(nn.Module):
    """Best distribution over the particles for a price of the costs that somebody else sets.

        max_q  mean_b E_q [Q_r - lam^T Q_c]    s.t.    mean_b KL(q_b || p_b) <= epsilon

    Only the temperature is solved for. With ``lam`` from a multiplier moved by the costs of whole episodes
    this is the Lagrangian variant of CVPO; with ``lam = 0`` it is MPO, which knows no limit. Called as every
    `DualSolver` is, so :class:`~safe_components.estep.projector.EStepProjector` takes it in place of one.

    The limits do not enter the problem, they are only reported on: ``feasible`` says whether *this* ``q``
    keeps them (up to 1e-6 of their size), ``lam_clipped`` and ``recovered`` are false, ``expected_reward`` is
    that of ``Q_r`` without the price. ``residual`` and ``converged`` are of the problem above.

    Args:
        multiplier: returns ``lam`` ``[m]``, reward per cost, not negative: such as a module of
            ``safe_components.lagrangian``; its state stays with it.
        solver: finds the temperature; ``None`` is
            :class:`~safe_components.estep.newton.NewtonDualSolver`.

    Raises:
        ValueError: in the call, if ``multiplier`` returns another shape or a negative number, and what
            ``solver`` raises.

    Source: the E-step of MPO (Abdolmaleki et al. 2018, arXiv 1806.06920, eq. 9) with a penalised reward.

    Example:
        >>> q_reward = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> q_cost = torch.tensor([[[0.0], [0.0], [1.0], [1.0]]])
        >>> solver = GivenMultiplierSolver(lambda: torch.tensor([2.0]))
        >>> solution = solver(q_reward, q_cost, 0.2, torch.tensor([0.5]))
        >>> solution.weight  # of the penalised rewards 0, 1, 0, 1
        tensor([[0.0974, 0.4026, 0.0974, 0.4026]])
        >>> solution.expected_cost, bool(solution.feasible)
        (tensor([0.5000], dtype=torch.float64), True)
    """

    def __init__(self, multiplier: Callable[[], Tensor], solver: DualSolver | None = None) -> None:
        super().__init__()
        # A tuple keeps the multiplier out of this module's state: its owner saves it.
        self._multiplier = (multiplier,)
        self.solver = NewtonDualSolver() if solver is None else solver

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
        """Solve one E-step per leading index; see :meth:`DualSolver.forward`."""
        if q_cost.ndim == q_reward.ndim:
            q_cost = q_cost.unsqueeze(-1)
        check_shapes(q_reward, q_cost, cost_limits, log_prior, infeasible)
        lam = self._multiplier[0]().to(device=q_cost.device, dtype=torch.float64)
        if lam.shape != q_cost.shape[-1:]:
            raise ValueError(f"multiplier returned shape {tuple(lam.shape)} for {q_cost.shape[-1]} costs")
        if self.solver.synchronises and not bool((lam >= 0).all()):
            raise ValueError(f"multiplier returned {lam.tolist()}, must be at least 0")
        cost = q_cost.double()
        penalised = q_reward.double() - cost @ lam
        start = None if init is None else (init[0], init[1][..., :0])
        none = cost[..., :0]
        answer = self.solver(penalised, none, epsilon, lam[:0], log_prior, infeasible=infeasible, init=start)
        expected_cost = (answer.weight.unsqueeze(-1) * cost).sum(-2).mean(-2)
        limits = torch.as_tensor(cost_limits, dtype=torch.float64, device=cost.device)
        lam = lam.expand_as(expected_cost)
        return dataclasses.replace(
            answer,
            weight=answer.weight.to(q_reward.dtype),
            lam=lam,
            expected_reward=answer.expected_reward + (lam * expected_cost).sum(-1),
            expected_cost=expected_cost,
            feasible=(expected_cost <= limits * (1.0 + 1e-6)).all(-1),
            lam_clipped=torch.zeros_like(lam, dtype=torch.bool),
        )
