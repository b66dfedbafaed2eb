"""Batched Q ensembles and their temporal-difference loss."""

from safe_components.critics.q_ensemble import QEnsemble

__all__ = ["QEnsemble"]
