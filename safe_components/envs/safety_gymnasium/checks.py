"""The checks before every step of a navigation environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


def checked_action(env: Any, action: Any) -> np.ndarray:
    """Return the action as an array, or raise if the environment cannot take it.

    Args:
        env: a ``safety_gymnasium.builder.Builder``.
        action: array-like of the action space's shape. The agent clips values beyond its bounds.

    Raises:
        gymnasium.error.ResetNeeded: if the episode has ended.
        ValueError: if the shape is wrong, or if a value is not finite (MuJoCo would apply zeros).
    """
    if env.terminated or env.truncated:
        raise gymnasium.error.ResetNeeded("the episode has ended: call reset() before step()")
    array = np.asarray(action)
    if array.shape != env.action_space.shape:
        raise ValueError(f"the action has shape {array.shape}; it must have {env.action_space.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"the action is {array}; all its values must be finite")
    return array
