"""Batched Q ensembles and their temporal-difference loss."""

from safe_components.critics.n_step import n_step_transform
from safe_components.critics.q_ensemble import QEnsemble
from safe_components.critics.target_smoothing import TargetSmoothing
from safe_components.critics.td_loss import TDLoss

__all__ = ["QEnsemble", "TDLoss", "TargetSmoothing", "n_step_transform"]
