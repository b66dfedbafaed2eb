"""What every step of a navigation environment checks before it runs."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


def checked_action(env: Any, action: Any) -> np.ndarray:
    """The action as an array, if the environment can take it.

    Args:
        env: a ``safety_gymnasium.builder.Builder``.
        action: array-like of the action space's shape. Values beyond its bounds are clipped by the agent.

    Raises:
        gymnasium.error.ResetNeeded: if the episode has ended.
        ValueError: if the shape is wrong or a value is not finite (MuJoCo would run with zeros).
    """
    if env.terminated or env.truncated:
        raise gymnasium.error.ResetNeeded("the episode has ended: call reset() before step()")
    action = np.asarray(action)
    if action.shape != env.action_space.shape:
        raise ValueError(f"the action has shape {action.shape}; it must have {env.action_space.shape}")
    if not np.isfinite(action).all():
        raise ValueError(f"the action is {action}; all its values must be finite")
    return action
