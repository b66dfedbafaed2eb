"""bullet-safety-gym, with episodes that a seed reproduces."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

import gymnasium
import numpy as np

from safe_components.envs.random_state import OwnRandomState

BULLET_ID = re.compile(r"Safety(Ant|Ball|Car|Drone)(Circle|Gather|Reach|Run)-v0")


def make_bullet(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make one environment of bullet-safety-gym.

    The package draws from the global generators, and its simulator carries traces of the last episode through
    a reset. ``OwnRandomState`` mends both.

    Args:
        env_id: an id that ``BULLET_ID`` matches.
        options: handed to ``gymnasium.make``.

    Raises:
        ImportError: if bullet-safety-gym is not installed.
    """
    if importlib.util.find_spec("bullet_safety_gym") is None:
        raise ImportError(
            f"{env_id} needs bullet-safety-gym, which has wheels for Python < 3.12: "
            "pip install pybullet && pip install --no-deps bullet-safety-gym==1.4.0"
        )
    importlib.import_module("bullet_safety_gym")  # registers the ids

    def make() -> gymnasium.Env[Any, Any]:
        with np.errstate(over="ignore"):  # its spaces mix float32 and float64 bounds
            return gymnasium.make(env_id, disable_env_checker=True, **options)

    return OwnRandomState(make, in_step="Gather" in env_id or "Reach" in env_id)
