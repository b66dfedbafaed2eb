"""Lagrangian multipliers moved by the episodes just collected."""
