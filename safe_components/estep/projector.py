"""The E-step as a TensorDict module: from scored particles to their weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from safe_components.estep.newton import NewtonDualSolver
from safe_components.estep.problem import first_state
from safe_components.estep.solve import DualSolution, Infeasible
from safe_components.keys import (
    PARTICLE_LOG_PRIOR,
    PARTICLE_Q_COST,
    PARTICLE_Q_REWARD,
    PARTICLE_WEIGHT,
)
from safe_components.ops import q_limits


class EStepProjector(TensorDictModuleBase):  # type: ignore[misc]  # TensorDict has no types
    """Best distribution over the particles within a KL ball and within limits on the expected costs.

        max_q  mean_b Σ_k q_bk Q_r[b, k]
        s.t.   mean_b Σ_k q_bk Q_c,i[b, k] <= d_i  (every i),    mean_b KL(q_b ‖ p_b) <= ε

    with ``p`` uniform over the ``K`` particles drawn from the reference policy, or ``log_prior`` if the
    actions are an enumerated set. Reads ``("particles", "q_reward")`` ``[B, K]``, ``("particles", "q_cost")``
    ``[B, K, m]`` and, where present, ``("particles", "log_prior")`` ``[B, K]``; writes
    ``("particles", "weight")`` ``[B, K]``, ``q`` in the dtype of ``q_reward``. No gradient flows through.

    After each call :attr:`solution` holds the multipliers, the constraints' values, the residual and the
    status (:class:`~safe_components.estep.solve.DualSolution`). The multipliers are buffers, so a checkpoint
    holds them and the next batch starts from them.

    Args:
        epsilon: bound on the divergence, nats, positive.
        cost_limits: ``d``, one per cost signal, in Q units (discounted cost; convert an episode's limit with
            :func:`~safe_components.ops.q_cost_limit`). Any finite number is accepted: a limit on an
            advantage may be negative. Empty for an E-step without constraint (MPO).
        solver: ``solver(q_reward, q_cost, epsilon, cost_limits, log_prior=None) -> DualSolution``. ``None``
            is :class:`~safe_components.estep.newton.NewtonDualSolver`.
            :class:`~safe_components.estep.given_multiplier.GivenMultiplierSolver` takes the multipliers from
            outside instead of the limits. The keywords ``infeasible`` and ``init`` (the last multipliers)
            are passed to a solver whose signature declares them.
        infeasible: the answer if no ``q`` in the ball meets the limits. ``"recover"`` comes as close to them
            as the ball allows; ``"clip"`` keeps ``λ`` at the solver's ``lam_max``.
        warm_start: start from the multipliers of the last call instead of the cold start.
        check_finite: stop at the first key that holds a value that is not finite. The check waits for the
            device; turn it off (and give the solver ``fixed_iterations``) inside a CUDA graph.
        q_reward_key: name of the reward estimates.
        q_cost_key: name of the cost estimates.
        log_prior_key: name of the prior's log-probabilities.
        weight_key: name of the weights.

    Raises:
        ValueError: if ``epsilon <= 0``, a limit or an estimate is not finite, ``K < 2``, shapes do not fit,
            the number of limits differs from the number of costs, or ``infeasible="clip"`` is asked of a
            solver that does not declare it.

    Source: CVPO (Liu et al. 2022, arXiv 2201.11927), E-step.

    Example:
        >>> from tensordict import TensorDict
        >>> q_reward = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> q_cost = torch.tensor([[[0.0], [0.0], [1.0], [1.0]]])
        >>> batch = TensorDict(particles=dict(q_reward=q_reward, q_cost=q_cost), batch_size=[1])
        >>> projector = EStepProjector(epsilon=0.2, cost_limits=[0.5])
        >>> projector(batch)["particles", "weight"]
        tensor([[0.0974, 0.4026, 0.0974, 0.4026]])
        >>> projector.solution.expected_cost, bool(projector.solution.feasible)
        (tensor([0.5000], dtype=torch.float64), True)
    """

    def __init__(
        self,
        epsilon: float,
        cost_limits: float | Sequence[float] | Tensor,
        solver: Callable[..., DualSolution] | None = None,
        infeasible: Infeasible = "recover",
        *,
        warm_start: bool = True,
        check_finite: bool = True,
        q_reward_key: NestedKey = PARTICLE_Q_REWARD,
        q_cost_key: NestedKey = PARTICLE_Q_COST,
        log_prior_key: NestedKey = PARTICLE_LOG_PRIOR,
        weight_key: NestedKey = PARTICLE_WEIGHT,
    ) -> None:
        super().__init__()
        if not 0 < epsilon < float("inf"):
            raise ValueError(f"epsilon={epsilon} must be positive and finite (nats)")
        if infeasible not in ("recover", "clip"):
            raise ValueError(f"infeasible={infeasible!r} is not one of 'recover', 'clip'")
        self.solver: Callable[..., DualSolution] = NewtonDualSolver() if solver is None else solver
        # The signature of a module's call is that of its forward.
        declared = inspect.signature(getattr(self.solver, "forward", self.solver)).parameters
        self._takes_infeasible, self._takes_init = "infeasible" in declared, "init" in declared
        if infeasible != "recover" and not self._takes_infeasible:
            raise ValueError(
                f"infeasible={infeasible!r} needs a solver whose call declares the keyword infeasible, which "
                f"that of {type(self.solver).__name__} does not: use infeasible='recover'"
            )
        self.infeasible: Infeasible = infeasible
        self.warm_start = warm_start
        self.check_finite = check_finite
        self.log_prior_key = log_prior_key
        self.in_keys = [q_reward_key, q_cost_key]
        self.out_keys = [weight_key]
        self._solution: DualSolution | None = None
        self.epsilon: Tensor
        self.cost_limits: Tensor
        self.eta: Tensor
        self.lam: Tensor
        self.register_buffer("epsilon", torch.tensor(epsilon, dtype=torch.float64))
        limits = q_limits(cost_limits)
        self.register_buffer("cost_limits", limits)
        # The last multipliers. NaN stands for no multipliers; the solver replaces it by its cold start.
        self.register_buffer("eta", torch.full((), torch.nan, dtype=torch.float64))
        self.register_buffer("lam", torch.full_like(limits, torch.nan))

    @property
    def solution(self) -> DualSolution:
        """The solution of the last call.

        Raises:
            RuntimeError: before the first call.
        """
        if self._solution is None:
            raise RuntimeError("there is no solution yet: call the E-step on scored particles first")
        return self._solution

    def set_cost_limits(self, cost_limits: float | Sequence[float] | Tensor) -> None:
        """Replace the limits (Q units), for example by a schedule; their number stays."""
        limits = q_limits(cost_limits)
        if limits.shape != self.cost_limits.shape:
            raise ValueError(f"{limits.numel()} cost_limits cannot replace {self.cost_limits.numel()}")
        self.cost_limits.copy_(limits)

    @property
    def synchronizes(self) -> bool:
        """False if a call never waits for the device; true for a solver that does not say so."""
        return self.check_finite or bool(getattr(self.solver, "synchronizes", True))

    @dispatch  # type: ignore[untyped-decorator]  # TensorDict has no types
    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the weights of the particles and keep the solution."""
        q_reward, q_cost = tensordict.get(self.in_keys[0]), tensordict.get(self.in_keys[1])
        log_prior = tensordict.get(self.log_prior_key, None)
        solution = self.solve(q_reward, q_cost, log_prior, warm_start=self.warm_start)
        self._solution = solution
        # The multipliers of a recovery belong to another problem, and a bound says nothing about the next.
        useless = solution.recovered | solution.eta_at_min
        self._size_multipliers(solution.eta.shape)
        self.eta.copy_(solution.eta).masked_fill_(useless, torch.nan)
        self.lam.copy_(solution.lam).masked_fill_(useless.unsqueeze(-1), torch.nan)
        return tensordict.set(self.out_keys[0], solution.weight)

    @torch.no_grad()
    def solve(
        self,
        q_reward: Tensor,
        q_cost: Tensor,
        log_prior: Tensor | None = None,
        *,
        warm_start: bool = False,
    ) -> DualSolution:
        """Return the solution for these estimates, and keep nothing of it.

        Args:
            q_reward: ``[..., B, K]``, one problem for each leading index.
            q_cost: ``[..., B, K, m]``.
            log_prior: ``[..., B, K]``; None is uniform.
            warm_start: start from the multipliers of the module's last call, if it solved as many problems.
        """
        m = self.cost_limits.shape[-1]
        if q_cost.ndim == q_reward.ndim + 1 and q_cost.shape[-1] != m:
            raise ValueError(
                f"{m} cost_limits were given, but {self.in_keys[1]} holds {q_cost.shape[-1]} costs: "
                f"its shape is {tuple(q_cost.shape)}, expected [B, K, {m}]"
            )
        if self.check_finite:
            self._check_finite(q_reward, q_cost, log_prior)
        keywords: dict[str, object] = {}
        if self._takes_infeasible:
            keywords["infeasible"] = self.infeasible
        if self._takes_init and warm_start and self.eta.shape == q_reward.shape[:-2]:
            keywords["init"] = (self.eta, self.lam)
        return self.solver(q_reward, q_cost, self.epsilon, self.cost_limits, log_prior, **keywords)

    def _size_multipliers(self, lead: torch.Size) -> None:
        """Hold multipliers for as many problems as a call solves, without values if their number changes."""
        if self.eta.shape != lead:
            self.eta = self.eta.new_full(lead, torch.nan)
            self.lam = self.lam.new_full((*lead, self.cost_limits.shape[-1]), torch.nan)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._size_multipliers(state_dict.get(f"{prefix}eta", self.eta).shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_finite(self, q_reward: Tensor, q_cost: Tensor, log_prior: Tensor | None) -> None:
        for key, value in zip(self.in_keys, (q_reward, q_cost), strict=True):
            bad = ~value.isfinite()
            if log_prior is not None and value.ndim >= log_prior.ndim:
                allowed = ~log_prior.isneginf()
                bad = bad & (allowed if value.ndim == allowed.ndim else allowed.unsqueeze(-1))
            if bool(bad.any()):
                raise ValueError(f"{key} holds {int(bad.sum())} values that are not finite")
        if log_prior is None:
            return
        if bool((log_prior.isnan() | log_prior.isposinf()).any()):
            raise ValueError(f"{self.log_prior_key} holds NaN or +inf; log-probabilities are expected")
        excluded = log_prior.isneginf().all(-1)
        if bool(excluded.any()):
            raise ValueError(
                f"{self.log_prior_key} is -inf for every action of state {first_state(excluded)}; "
                "at least one must be allowed"
            )
