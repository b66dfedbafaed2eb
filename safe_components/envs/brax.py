"""Brax's locomotion tasks with the speed limits of Safety-Gymnasium."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any, NamedTuple

from safe_components.envs.extra import require_packages

INSTALL = 'pip install "brax>=0.14" "mujoco-mjx>=3.3,<3.5"'


class Task(NamedTuple):
    """A robot of Brax, and the limit on its speed [m/s]; ``planar`` counts the speed along y, too."""

    robot: str
    limit: float
    planar: bool = False


# The limits and what they apply to are those of Safety-Gymnasium's Safety...Velocity-v1. The swimmer is left
# out: Brax 0.14.2 has it with the generalized physics alone, whose fluid fails with JAX 0.10.
BRAX_TASKS = {
    "brax/SafetyAntVelocity": Task("ant", 2.6222, planar=True),
    "brax/SafetyHalfCheetahVelocity": Task("halfcheetah", 3.2096),
    "brax/SafetyHopperVelocity": Task("hopper", 0.7402),
    "brax/SafetyHumanoidVelocity": Task("humanoid", 1.4149, planar=True),
    "brax/SafetyWalker2dVelocity": Task("walker2d", 2.3415),
}


class SpeedLimit:
    """A Brax environment whose ``info["cost"]`` is 1 while the speed is above a limit, else 0.

        cost = 1 if |v| > limit, else 0;      v = v_x, or |(v_x, v_y)| if planar      [m/s]

    The speeds are those that Brax reports in its metrics: displacements of the torso, or of the center of
    mass of the humanoid, divided by the duration of a step.

    Args:
        env: an environment of Brax whose metrics hold ``x_velocity``, and ``y_velocity`` if planar.
        limit: largest speed without a cost [m/s].
        planar: whether the speed is that in the plane. Otherwise only forward motion counts.
    """

    def __init__(self, env: Any, limit: float, planar: bool = False) -> None:
        self.env, self.limit, self.planar = env, limit, planar
        self.action_size: int = env.action_size

    def reset(self, rng: Any) -> Any:
        """Return the first state of an episode."""
        return self._priced(self.env.reset(rng))

    def step(self, state: Any, action: Any) -> Any:
        """Return the state that follows, with its cost."""
        return self._priced(self.env.step(state, action))

    def _priced(self, state: Any) -> Any:
        speed = state.metrics["x_velocity"]
        if self.planar:
            speed = (speed**2 + state.metrics["y_velocity"] ** 2) ** 0.5
        return state.replace(info=state.info | {"cost": (speed > self.limit).astype("float32")})


@functools.cache
def make_brax(env_id: str, backend: str = "mjx") -> SpeedLimit:
    """Make the simulator of one of ``BRAX_TASKS``.

    Args:
        env_id: a key of ``BRAX_TASKS``.
        backend: physics of Brax. ``"mjx"`` is MuJoCo's, for which the limits are meant; ``"generalized"``,
            ``"positional"`` and ``"spring"`` are Brax's own.

    Raises:
        ImportError: if Brax is not installed.
        ValueError: if there is no such physics.
    """
    require_packages(env_id, INSTALL, "brax", "mujoco.mjx")
    backends = ("mjx", "generalized", "positional", "spring")
    if backend not in backends:
        raise ValueError(f"backend must be one of {backends}, got {backend!r}")
    envs = importlib.import_module("brax.envs")
    robot, limit, planar = BRAX_TASKS[env_id]
    with warnings.catch_warnings():  # Brax recommends another package each time
        warnings.filterwarnings("ignore", "Brax System", UserWarning)
        return SpeedLimit(envs.get_environment(robot, backend=backend), limit, planar)
