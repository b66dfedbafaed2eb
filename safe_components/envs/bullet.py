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


class _Pictures(gymnasium.Wrapper[Any, Any, Any, Any]):
    """``render`` without an argument, as Gymnasium calls it; the package expects the mode."""

    render_mode = "rgb_array"

    def render(self) -> Any:
        return self.unwrapped.render(mode="rgb_array")  # type: ignore[call-arg]  # the package's own


def make_bullet(env_id: str, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make one environment of bullet-safety-gym.

    The package draws from the global generators, and its simulator carries traces of the last episode through
    a reset. ``OwnRandomState`` mends both.

    Args:
        env_id: an id that ``BULLET_ID`` matches.
        render_mode: ``"rgb_array"`` enables ``render``, by the simulator's own renderer on the CPU.
        options: handed to ``gymnasium.make``.

    Raises:
        ImportError: if bullet-safety-gym is not installed.
        ValueError: if the render mode is unknown.
    """
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
    if importlib.util.find_spec("bullet_safety_gym") is None:
        raise ImportError(
            f"{env_id} needs bullet-safety-gym, which has wheels for Python < 3.12: "
            "pip install pybullet && pip install --no-deps bullet-safety-gym==1.4.0"
        )
    importlib.import_module("bullet_safety_gym")  # registers the ids

    def make() -> gymnasium.Env[Any, Any]:
        with np.errstate(over="ignore"):  # its spaces mix float32 and float64 bounds
            env = gymnasium.make(env_id, disable_env_checker=True, **options)
        return env if render_mode is None else _Pictures(env)

    return OwnRandomState(make, in_step="Gather" in env_id or "Reach" in env_id)
