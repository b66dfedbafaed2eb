"""Batched Q ensembles, their temporal-difference loss, and the targets that the loss learns from."""

from safe_components.critics.calibration import (
    Calibration,
    CalibrationMoments,
    calibration,
    calibration_moments,
)
from safe_components.critics.constrained import ConstrainedQEnsemble, CriticPair
from safe_components.critics.learner import CriticLearner
from safe_components.critics.n_step import n_step_transform, n_step_transitions
from safe_components.critics.q_ensemble import QEnsemble
from safe_components.critics.target_smoothing import TargetSmoothing
from safe_components.critics.targets import Copy, Polyak
from safe_components.critics.td_loss import COST_SIGNAL, REWARD_SIGNAL, Signal, TDLoss
from safe_components.critics.value_network import ValueNetwork

__all__ = [
    "COST_SIGNAL",
    "REWARD_SIGNAL",
    "Calibration",
    "CalibrationMoments",
    "ConstrainedQEnsemble",
    "Copy",
    "CriticLearner",
    "CriticPair",
    "Polyak",
    "QEnsemble",
    "Signal",
    "TDLoss",
    "TargetSmoothing",
    "ValueNetwork",
    "calibration",
    "calibration_moments",
    "n_step_transform",
    "n_step_transitions",
]
