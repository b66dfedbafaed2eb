"""Checks that every environment shares."""

from __future__ import annotations


def check_counts(**counts: int) -> None:
    """Raise ValueError for the first count that is not an integer of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
