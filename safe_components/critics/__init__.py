"""Batched Q ensembles and their temporal-difference losses."""

from safe_components.critics.constrained import ConstrainedQEnsemble
from safe_components.critics.constrained_td_loss import ConstrainedTDLoss
from safe_components.critics.n_step import n_step_transform
from safe_components.critics.q_ensemble import QEnsemble
from safe_components.critics.target_smoothing import TargetSmoothing
from safe_components.critics.td_loss import TDLoss

__all__ = [
    "ConstrainedQEnsemble",
    "ConstrainedTDLoss",
    "QEnsemble",
    "TDLoss",
    "TargetSmoothing",
    "n_step_transform",
]
