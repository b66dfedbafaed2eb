"""A cost limit that falls to its value during the first frames."""

from __future__ import annotations

import dataclasses

import torch

from safe_components.training import RunConfig

__all__ = ["LimitScheduleConfig", "limit_at"]


@dataclasses.dataclass(frozen=True)
class LimitScheduleConfig(RunConfig):
    """Where the limits start and how long they fall."""

    limit_start: tuple[float, ...] = ()
    """first cost limit, one per cost, falling linearly to cost_limit; empty for a constant limit"""
    limit_decay_frames: int = 50_000
    """frames until it has fallen"""


def limit_at(config: LimitScheduleConfig, frames: int) -> torch.Tensor:
    """The limits per episode ``[m]`` after ``frames`` frames.

    Raises:
        ValueError: if ``limit_start`` is not empty and holds another number of limits than ``cost_limit``, or
            ``limit_decay_frames`` is below 1.
    """
    limit = torch.tensor(config.cost_limit, dtype=torch.float64)
    if not config.limit_start:
        return limit
    if len(config.limit_start) != len(config.cost_limit):
        raise ValueError(f"limit_start {config.limit_start} needs one limit per cost: {config.cost_limit}")
    if config.limit_decay_frames < 1:
        raise ValueError(f"limit_decay_frames is {config.limit_decay_frames}, must be at least 1")
    start = torch.tensor(config.limit_start, dtype=torch.float64)
    return torch.lerp(start, limit, min(frames / config.limit_decay_frames, 1.0))
