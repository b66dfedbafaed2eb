"""One entry for every constrained environment: ``make_env``."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import torch
from torchrl.envs import EnvBase, ParallelEnv

from safe_components.envs.gymnasium_batch import GymnasiumBatch, check_counts
from safe_components.envs.point_circle import PointCircle

_BULLET = re.compile(r"Safety(Ant|Ball|Car|Drone)(Circle|Gather|Reach|Run)-v0")


def make_env(
    env_id: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    num_workers: int = 1,
    frame_skip: int = 1,
    max_episode_steps: int | None = None,
    cost_keys: Sequence[str] = ("cost",),
    render_mode: str | None = None,
    **kwargs: Any,
) -> EnvBase:
    """A TorchRL environment whose steps write a reward [..., 1] and m costs [..., m], float32.

    Args:
        env_id: a Safety-Gymnasium id, the id of any Gymnasium environment whose ``info`` holds a cost
            (also ``"module:Id-v0"``), or ``"PointCircle"``.
        num_envs: copies in all. The batch size is [] for one, [num_envs] for several in one process.
        device: where the tensors are put.
        seed: same seed, same episodes.
        num_workers: processes; a divisor of ``num_envs``. With more than one, the batch size is
            [num_workers, num_envs / num_workers], or [num_workers] if each holds one copy.
        frame_skip: raw steps per step; reward and cost are summed.
        max_episode_steps: raw steps after which an episode is truncated; None keeps the environment's own.
        cost_keys: entries of ``info`` that make up the m costs.
        render_mode: handed to the environment.
        kwargs: handed to the environment.

    Raises:
        ValueError: a bad number, an unknown id (the nearest names are given), an environment without cost.

    Example:
        >>> env = make_env("PointCircle", num_envs=2, seed=0)
        >>> env.rollout(3)["next", "cost"].shape
        torch.Size([2, 3, 1])
    """
    check_counts(num_envs=num_envs, num_workers=num_workers)
    if num_workers > 1:
        if num_envs % num_workers:
            raise ValueError(f"num_envs {num_envs} must be a multiple of num_workers {num_workers}")
        one = functools.partial(
            make_env,
            env_id,
            num_envs=num_envs // num_workers,
            frame_skip=frame_skip,
            max_episode_steps=max_episode_steps,
            cost_keys=tuple(cost_keys),
            render_mode=render_mode,
            **kwargs,
        )
        env = ParallelEnv(num_workers, one, device=device)
        if seed is not None:
            env.set_seed(seed)
        return env
    if env_id == "PointCircle":
        return _point_circle(
            num_envs, device, seed, frame_skip, max_episode_steps, cost_keys, render_mode, kwargs
        )
    make = _constructor(env_id, max_episode_steps, render_mode, kwargs)
    return GymnasiumBatch(
        make, num_envs=num_envs, device=device, seed=seed, frame_skip=frame_skip, cost_keys=cost_keys
    )


def _point_circle(
    num_envs: int,
    device: torch.device | str,
    seed: int | None,
    frame_skip: int,
    max_episode_steps: int | None,
    cost_keys: Sequence[str],
    render_mode: str | None,
    kwargs: dict[str, Any],
) -> PointCircle:
    if render_mode is not None:
        raise ValueError(f"PointCircle draws nothing: render_mode must be None, got {render_mode!r}")
    if tuple(cost_keys) != ("cost",):
        kwargs["costs"] = tuple(cost_keys)
    if max_episode_steps is not None:
        kwargs["episode_length"] = max_episode_steps
    return PointCircle(num_envs, device=device, seed=seed, frame_skip=frame_skip, **kwargs)


def _constructor(
    env_id: str, max_episode_steps: int | None, render_mode: str | None, kwargs: dict[str, Any]
) -> Callable[[], gymnasium.Env]:
    options = dict(kwargs) if render_mode is None else {**kwargs, "render_mode": render_mode}
    if env_id.startswith("Safety") and not _BULLET.fullmatch(env_id):
        # Imported on demand: it loads MuJoCo, which other environments do not need.
        from safe_components.envs.safety_gymnasium import make_safety_gymnasium, safety_gymnasium_ids

        if env_id in safety_gymnasium_ids():
            return functools.partial(
                make_safety_gymnasium, env_id, max_episode_steps=max_episode_steps, **options
            )
    if _BULLET.fullmatch(env_id):
        import bullet_safety_gym  # noqa: F401  registers the ids
    if ":" not in env_id and env_id not in gymnasium.registry:
        near = difflib.get_close_matches(env_id, ["PointCircle", *gymnasium.registry], 3)
        raise ValueError(f"unknown environment {env_id!r}; did you mean {near}?")
    return functools.partial(
        gymnasium.make, env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **options
    )
