"""Environments whose steps write ``reward`` [..., 1] and ``cost`` [..., m]."""
