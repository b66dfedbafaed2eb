"""Batched Q ensembles and their temporal-difference loss."""
