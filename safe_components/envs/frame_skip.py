"""The number of environment steps for which an action is held, where a user names none."""

from __future__ import annotations

import re

__all__ = ["default_frame_skip"]

ROLLING = re.compile(
    r"Safety(Point|Car|Racecar)(Goal|Button|Push|Circle|Run|Race|FadingEasy|FadingHard)\d-v\d+"
)


def default_frame_skip(env_id: str) -> int:
    """Return the environment steps for which recipes hold an action in this task.

    It is 8 for the Point, Car and Racecar tasks of Safety-Gymnasium, and 1 for all other tasks. A step of
    these tasks takes 0.02 s, in which an action changes hardly anything: the differences between the values
    of two actions drown in the error of the critics. Held for 0.16 s, it changes what the robot does, and an
    episode has an eighth of the decisions. docs/notebook/defaults.md has the measurement.

    Args:
        env_id: see `make_env`.

    Example:
        >>> default_frame_skip("SafetyPointGoal1-v0"), default_frame_skip("SafetyHopperVelocity-v1")
        (8, 1)
    """
    return 8 if ROLLING.fullmatch(env_id.rpartition(":")[2]) else 1
