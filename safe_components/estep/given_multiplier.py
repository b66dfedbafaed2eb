"""The E-step with its multipliers given from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from safe_components.estep.newton import NewtonDualSolver
from safe_components.estep.problem import center_estimates, dual_problem, weight_dtype
from safe_components.estep.solve import DualSolution, DualSolver, Infeasible


class GivenMultiplierSolver(nn.Module):
    """Best distribution over the particles for a price of the costs that is given.

        max_q  mean_b E_q [Q_r − λᵀ Q_c]    s.t.    mean_b KL(q_b ‖ p_b) <= ε

    With ``in_spreads`` the multiplier is a price ``θ`` without unit, and ``λ_i = θ_i s_r / s_i`` with the
    spreads ``s`` of the reward and of each cost over the actions of a state:

        max_q  mean_b E_q [Q_r / s_r − Σ_i θ_i Q_c,i / s_i]    s.t.    mean_b KL(q_b ‖ p_b) <= ε

    Then ``θ = 1`` weighs a cost like the reward, whatever their units, and the weights do not change if the
    reward or a cost is multiplied by a number. A cost without spread has the multiplier 0.

    Only the temperature is solved for. With ``λ`` from a multiplier that follows the costs of whole episodes,
    this is the Lagrangian variant of CVPO. With ``λ = 0`` it is MPO, which has no limit. The call is that of
    every `DualSolver`, so :class:`~safe_components.estep.projector.EStepProjector` accepts it as well.

    The limits do not enter the problem; they are only reported on. ``feasible`` says whether *this* ``q``
    meets them, up to the ``feasible_tol`` of ``solver``, in spreads of the costs. ``lam_clipped`` and
    ``recovered`` are false. ``expected_reward`` is that of ``Q_r`` without the price. ``residual`` and
    ``converged`` are those of the problem above.

    Args:
        multiplier: returns ``λ`` ``[m]`` or ``[..., m]``, reward per cost, not negative, such as a module of
            ``safe_components.lagrangian``. Its state stays with it.
        solver: finds the temperature; ``None`` is
            :class:`~safe_components.estep.newton.NewtonDualSolver`.
        in_spreads: whether the multiplier is ``θ``, without unit. The solution reports ``λ`` in reward per
            cost in any case.

    Raises:
        ValueError: if ``solver`` is no `DualSolver`; in the call, if ``multiplier`` returns another shape or
            a negative number, and whatever ``solver`` raises.

    Source: the E-step of MPO (Abdolmaleki et al. 2018, arXiv 1806.06920, eq. 9) with a penalized reward.

    Example:
        >>> q_reward = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> q_cost = torch.tensor([[[0.0], [0.0], [1.0], [1.0]]])
        >>> solver = GivenMultiplierSolver(lambda: torch.tensor([2.0]))
        >>> solution = solver(q_reward, q_cost, 0.2, torch.tensor([0.5]))
        >>> solution.weight  # for the penalized rewards 0, 1, 0, 1
        tensor([[0.0974, 0.4026, 0.0974, 0.4026]])
        >>> solution.expected_cost, bool(solution.feasible)
        (tensor([0.5000], dtype=torch.float64), True)
    """

    def __init__(
        self,
        multiplier: Callable[[], Tensor],
        solver: DualSolver | None = None,
        *,
        in_spreads: bool = False,
    ) -> None:
        super().__init__()
        self.in_spreads = in_spreads
        # A tuple keeps the multiplier out of this module's state: its owner saves it.
        self._multiplier = (multiplier,)
        self.solver = NewtonDualSolver() if solver is None else solver
        if not isinstance(self.solver, DualSolver):
            raise ValueError(
                "the multiplier is given, so the solver must be a DualSolver, which solves for the "
                f"temperature alone, got a {type(self.solver).__name__}: derive it from DualSolver, or let "
                "it solve for the multiplier, too (in recipes, --multiplier dual)"
            )

    @property
    def multiplier(self) -> Callable[[], Tensor]:
        """The function that returns the multipliers."""
        return self._multiplier[0]

    @property
    def synchronizes(self) -> bool:
        """False if a call never waits for the device; then no argument is checked for its values."""
        return self.solver.synchronizes

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
        """Solve one E-step per leading index; see :meth:`~safe_components.estep.solve.DualSolver.forward`."""
        problem = dual_problem(q_reward, q_cost, epsilon, cost_limits, log_prior)
        lam = self._multiplier[0]().to(device=q_reward.device, dtype=torch.float64)
        m = problem.features.shape[-3] - 1
        if lam.shape[-1:] != (m,) or lam.ndim >= q_reward.ndim:
            raise ValueError(f"multiplier returned shape {tuple(lam.shape)} for {m} costs")
        if self.synchronizes and not bool((lam >= 0).all()):
            raise ValueError(f"multiplier returned {lam.tolist()}, must be at least 0")
        cost = problem.features[..., 1:, :, :]
        *_, spread = center_estimates(problem.features, problem.log_prior)
        if self.in_spreads:
            lam = torch.where(spread[..., 1:] > 0, lam * spread[..., :1] / spread[..., 1:], 0.0)
        price = (lam[..., None, None] * cost).sum(-3)
        penalized = problem._replace(
            features=(problem.features[..., 0, :, :] - price).unsqueeze(-3),
            cost_limits=problem.cost_limits[..., :0],
        )
        start = None if init is None else (init[0], init[1][..., :0])
        answer = self.solver.solve(penalized, infeasible, start)
        expected_cost = (answer.weight.unsqueeze(-3) * cost).sum(-1).mean(-1)
        # The second term is for rounding, if the cost is the same for all actions.
        tolerance = self.solver.feasible_tol * spread[..., 1:] + 1e-12 * expected_cost.abs()
        lam = lam.expand_as(expected_cost)
        return replace(
            answer,
            weight=answer.weight.to(weight_dtype(q_reward)),
            lam=lam,
            expected_reward=answer.expected_reward + (lam * expected_cost).sum(-1),
            expected_cost=expected_cost,
            feasible=(expected_cost <= problem.cost_limits + tolerance).all(-1),
            lam_clipped=torch.zeros_like(lam, dtype=torch.bool),
        )
