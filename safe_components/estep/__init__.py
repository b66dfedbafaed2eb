"""The variational E-step: particles, projector, dual solvers."""

from safe_components.estep.adam import AdamDualSolver
from safe_components.estep.dual import DualTerms, dual_terms
from safe_components.estep.given_multiplier import GivenMultiplierSolver
from safe_components.estep.kkt import kkt_residual
from safe_components.estep.newton import NewtonDualSolver
from safe_components.estep.particles import ParticleSampler
from safe_components.estep.problem import DualProblem, ScaledProblem, dual_problem, scale_problem
from safe_components.estep.projector import EStepProjector
from safe_components.estep.promise import Promise
from safe_components.estep.slsqp import SLSQPDualSolver
from safe_components.estep.solve import DualSolution, DualSolver, Infeasible, Minimum, minimum_at

__all__ = [
    "AdamDualSolver",
    "DualProblem",
    "DualSolution",
    "DualSolver",
    "DualTerms",
    "EStepProjector",
    "GivenMultiplierSolver",
    "Infeasible",
    "Minimum",
    "NewtonDualSolver",
    "ParticleSampler",
    "Promise",
    "SLSQPDualSolver",
    "ScaledProblem",
    "dual_problem",
    "dual_terms",
    "kkt_residual",
    "minimum_at",
    "scale_problem",
]
