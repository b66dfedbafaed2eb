"""The tasks of simulators that run on a GPU, by their ids ``"brax/..."`` and ``"crax/..."``."""

from __future__ import annotations

import importlib
from typing import Any

from torchrl.envs import EnvBase

from safe_components.envs.brax import BRAX_TASKS, make_brax
from safe_components.envs.crax import CRAX_TASKS, make_crax, split_level

EPISODE_STEPS = 1000  # of the tasks that set no limit themselves


def is_gpu_simulator(env_id: str) -> bool:
    """Return whether an id is that of a simulator that steps all copies on the device at once.

    Example:
        >>> is_gpu_simulator("brax/SafetyAntVelocity"), is_gpu_simulator("SafetyAntVelocity-v1")
        (True, False)
    """
    return env_id.startswith(("brax/", "crax/"))


def make_gpu_simulator(
    env_id: str,
    *,
    num_workers: int = 1,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    options: dict[str, Any],
    **batch: Any,
) -> EnvBase:
    """Make copies of a task of Brax or CRAX as one ``JaxBatch``.

    Args:
        env_id: one of ``BRAX_TASKS`` or ``CRAX_TASKS``; CRAX's may end in ``_level_2`` or ``_level_3``.
        num_workers: must be 1.
        max_episode_steps: raw steps of an episode; None keeps the task's own, or 1,000.
        render_mode: must be None.
        options: handed to the simulator, for example ``{"backend": "spring"}`` to Brax.
        batch: handed to ``JaxBatch``.

    Raises:
        ImportError: if a package is not installed.
        ValueError: if there is no such task, or if an option is not supported.
    """
    of_brax = env_id.startswith("brax/")
    offered = [*BRAX_TASKS] if of_brax else [*CRAX_TASKS]
    if (env_id if of_brax else split_level(env_id)[0]) not in offered:
        raise ValueError(
            f"unknown environment {env_id!r}: there are {', '.join(offered)}. For another task with a cost, "
            "make a JaxBatch (safe_components.envs.jax_batch)"
        )
    if num_workers > 1:
        raise ValueError(
            f"num_workers must be 1 for {env_id}, which steps all copies at once, got {num_workers}"
        )
    if render_mode is not None:
        raise ValueError(f"render_mode must be None for {env_id}, which cannot be drawn, got {render_mode!r}")
    make: Any = make_brax if of_brax else make_crax
    simulator = make(env_id, **options)
    batch["max_episode_steps"] = max_episode_steps or getattr(simulator, "episode_length", EPISODE_STEPS)
    made: EnvBase = importlib.import_module("safe_components.envs.jax_batch").JaxBatch(
        simulator, name=env_id, **batch
    )
    return made
