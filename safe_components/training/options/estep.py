"""Options of the E-step: its particles, its KL ball and its solver."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from safe_components.estep import AdamDualSolver, DualSolver, NewtonDualSolver, SLSQPDualSolver
from safe_components.ops import import_part, is_import_path
from safe_components.training.options.policy import PolicyConfig
from safe_components.training.options.ranges import Count, NotNegative, Positive, one_of_or_own

__all__ = ["DualConfig", "EStepConfig"]

# Evaluations of the dual in a solve whose convergence the host must not read. A solve that starts from the
# last batch's multipliers needs about half of them: docs/gpu.md.
FIXED_ITERATIONS = 20


@dataclasses.dataclass(frozen=True)
class DualConfig:
    """λ, the price of the cost, as the solution of the E-step's dual."""

    infeasible: Literal["recover", "clip"] = "clip"
    """if no distribution in the ball is safe: lower the cost alone (recover), or keep λ at its cap (clip)"""
    max: Positive = 1.0
    """cap of λ, in reward per cost; it must be well above the λ that keeps the limit"""

    @property
    def lam_max(self) -> float | None:
        """The cap that the solver keeps; None if ``infeasible`` is ``"recover"``."""
        return self.max if self.infeasible == "clip" else None


@dataclasses.dataclass(frozen=True)
class EStepConfig:
    """The E-step: actions sampled per state, and weights over them."""

    num_particles: Count = 16
    """K, the number of actions sampled per state"""
    antithetic: bool = False
    """sample the actions in pairs that mirror each other at the mean"""
    critics: Literal["target", "online"] = "target"
    """critics that score the particles"""
    epsilon: Positive = 0.1
    """radius of the KL ball, in nats"""
    entropy_coef: NotNegative | None = None
    """temperature of the entropy that the E-step and the critics' targets add to the reward, per nat, in
    units of the reward's value (see `value_units`); 0 for none; None makes 0.00125 for a policy that is
    squashed into the action bounds, and 0 for any other"""
    solver: Annotated[str, one_of_or_own("newton", "slsqp", "adam")] = "newton"
    """solver of the dual: newton (exact), slsqp (SciPy's, as published), adam (one step per batch), or
    package.module:name of your own"""

    def validate(self, config: Any) -> None:
        """Raise ValueError unless a solver of the user's own can be imported."""
        if is_import_path(self.solver):
            import_part(self.solver, "estep.solver")

    def temperature(self, policy: PolicyConfig) -> float:
        """Return the temperature for a policy, in units of the reward's value.

        A Gaussian that is not squashed would earn the bonus with deviations beyond the action bounds, which
        change no action.
        """
        if self.entropy_coef is not None:
            return self.entropy_coef
        return 0.00125 if policy.squashes else 0.0

    def make_solver(self, lam_max: float | None, waits: bool) -> DualSolver:
        """Make the solver of the dual; one of the user's own is called with ``lam_max`` alone.

        Args:
            lam_max: cap of the multipliers; None for no cap.
            waits: whether the host may read results from the device to decide when to stop.
        """
        if is_import_path(self.solver):
            own: DualSolver = import_part(self.solver, "estep.solver")(lam_max=lam_max)
            return own
        if self.solver == "slsqp":
            return SLSQPDualSolver.published(lam_max=lam_max)
        if self.solver == "adam":
            return AdamDualSolver(steps=1, lr=0.03, lam_max=lam_max)
        return NewtonDualSolver(lam_max=lam_max, fixed_iterations=None if waits else FIXED_ITERATIONS)
