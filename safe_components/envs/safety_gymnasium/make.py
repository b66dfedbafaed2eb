"""Make one raw Safety-Gymnasium environment by its id."""

from __future__ import annotations

import copy
import difflib
import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from safe_components.envs.headless import render_without_screen
from safe_components.envs.safety_gymnasium.compat import load_safety_gymnasium
from safe_components.envs.safety_gymnasium.fast import accelerate

_MULTI_AGENT = re.compile(r"^Safety(\d+[xp]\d+|\w*Multi)")


def safety_gymnasium_ids() -> list[str]:
    """Return the ids of the single-agent tasks, sorted.

    These are 22 navigation tasks for each of 5 agents, their ``Vision`` and ``Debug`` variants, and 6
    velocity tasks in 2 versions.

    Raises:
        ImportError: if safety-gymnasium 1.0.0 is not installed.

    Example:
        >>> "SafetyPointCircle1-v0" in safety_gymnasium_ids()
        True
    """
    load_safety_gymnasium()
    from safety_gymnasium.utils import registration

    return sorted(registration.safe_registry)


def make_safety_gymnasium(
    env_id: str, *, fast: bool = True, max_episode_steps: int | None = None, **kwargs: Any
) -> gymnasium.Env[Any, Any]:
    """Make one Safety-Gymnasium environment.

    Its ``step`` returns six values: ``(observation, reward, cost, terminated, truncated, info)``.

    Args:
        env_id: a single-agent id, for example ``"SafetyPointGoal1-v0"``; see ``safety_gymnasium_ids``.
        fast: whether to use the fast code path, which returns the same numbers bit for bit. ``False`` runs
            the package's own code.
        max_episode_steps: steps after which an episode is truncated. ``None`` keeps the task's own limit,
            500 for Circle, Run and Race, 1000 for the others.
        kwargs: further arguments of the environment: ``render_mode``, ``width``, ``height``,
            ``camera_id``, ``camera_name``, and ``config``, whose entries are added to the task's own.

    Returns:
        The environment, with ``reset(seed=..., options=...)`` and ``render()`` as in Gymnasium.

    Raises:
        ImportError: if safety-gymnasium 1.0.0 is not installed.
        gymnasium.error.NameNotFound: if the id is unknown; the nearest names are suggested.
        ValueError: if the id is that of a multi-agent task, or an argument is out of range.

    Example:
        >>> env = make_safety_gymnasium("SafetyPointGoal1-v0")
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, cost, terminated, truncated, info = env.step(env.action_space.sample())
        >>> observation.shape, cost
        ((60,), 0.0)
    """
    known = safety_gymnasium_ids()
    if env_id not in known:
        raise _unknown(env_id, known)
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps is {max_episode_steps}; it must be at least 1, or None")
    from safety_gymnasium.wrappers import SafeTimeLimit

    recipe = (env_id, fast, max_episode_steps, dict(kwargs))
    spec = copy.deepcopy(gymnasium.spec(env_id))
    if "config" in kwargs:
        kwargs["config"] = {**spec.kwargs.get("config", {}), **kwargs["config"]}
    spec.kwargs.update(kwargs)
    creator: Any = load_env_creator(str(spec.entry_point))
    modes = [None, *creator.metadata["render_modes"]]
    if spec.kwargs.get("render_mode") not in modes:
        raise ValueError(f"render_mode is {spec.kwargs['render_mode']!r}; it must be one of {modes}")
    with np.errstate(over="ignore"):  # Box(float32 bounds, dtype=float64) overflows in gymnasium 1.4
        env: gymnasium.Env[Any, Any] = creator(**spec.kwargs)
    task: Any = getattr(env, "task", None)
    if spec.kwargs.get("render_mode") is not None or getattr(task, "observe_vision", False):
        render_without_screen()
    if task is not None and max_episode_steps is not None:
        task.num_steps = max_episode_steps  # navigation tasks also count their steps
    env.unwrapped.spec = spec
    type(env).__reduce_ex__ = _reduce  # type: ignore[method-assign]  # its own makes it without its arguments
    vars(env)["_made_with"] = recipe
    if fast:
        accelerate(env)
    limit = max_episode_steps or spec.max_episode_steps
    limited: gymnasium.Env[Any, Any] = SafeTimeLimit(gymnasium.wrappers.OrderEnforcing(env), limit)
    return limited


def _reduce(env: Any, protocol: Any) -> tuple[Any, ...]:
    """Pickle or deep-copy an environment as the arguments that make it, and its state."""
    from safe_components.envs.object_state import read_object  # it needs torch, and this package does not

    started = getattr(env, "steps", 0) is not None
    return _remake, (*env._made_with, read_object(env) if started else None)


def _remake(env_id: str, fast: bool, limit: int | None, kwargs: dict[str, Any], state: Any) -> Any:
    from safe_components.envs.object_state import write_object  # as above

    env: Any = make_safety_gymnasium(env_id, fast=fast, max_episode_steps=limit, **kwargs).unwrapped
    if state is not None:
        env.reset(seed=0)
        write_object(env, state)
    return env


def _unknown(env_id: str, known: list[str]) -> Exception:
    if _MULTI_AGENT.match(env_id):
        return ValueError(f"{env_id!r} is a multi-agent task; only single-agent tasks are supported")
    near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; safety_gymnasium_ids() lists them all"
    return gymnasium.error.NameNotFound(f"{env_id!r} is not a Safety-Gymnasium task{hint}")
