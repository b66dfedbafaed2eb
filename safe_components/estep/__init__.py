"""The variational E-step: particles, projector, dual solvers."""

from safe_components.estep.adam import AdamDualSolver
from safe_components.estep.dual_solver import DualSolver
from safe_components.estep.given_multiplier import GivenMultiplierSolver
from safe_components.estep.kkt import kkt_residual
from safe_components.estep.newton import NewtonDualSolver
from safe_components.estep.particles import ParticleSampler
from safe_components.estep.projector import EStepProjector
from safe_components.estep.slsqp import SLSQPDualSolver
from safe_components.estep.solution import DualSolution

__all__ = [
    "AdamDualSolver",
    "DualSolution",
    "DualSolver",
    "EStepProjector",
    "GivenMultiplierSolver",
    "NewtonDualSolver",
    "ParticleSampler",
    "SLSQPDualSolver",
    "kkt_residual",
]
