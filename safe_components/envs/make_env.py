"""One entry for every constrained environment: ``make_env``."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torchrl.envs import EnvBase, ParallelEnv

from safe_components.envs.checks import check_counts
from safe_components.envs.gymnasium_batch import GymnasiumBatch
from safe_components.envs.own_random_state import OwnRandomState
from safe_components.envs.point_circle import PointCircle
from safe_components.envs.safety_gymnasium import make_safety_gymnasium, safety_gymnasium_ids

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
    """A constrained environment: every step writes a reward [..., 1] and m costs [..., m], float32.

    | ``env_id`` | cost |
    |---|---|
    | of Safety-Gymnasium, ``"SafetyPointGoal1-v0"`` | the step's own; its parts with ``cost_keys`` |
    | of Gymnasium, ``"Id-v0"`` or ``"module:Id-v0"`` | ``info["cost"]``: a number or a vector |
    | of bullet-safety-gym, ``"SafetyBallRun-v0"`` | ``info["cost"]``; an optional extra |
    | ``"PointCircle"`` | leaving the band between two walls; see :class:`PointCircle` |

    Observation spaces are flattened into one float32 vector, discrete actions are one-hot. Actions
    outside the bounds are executed clipped to them; the stored action stays as sampled. Reward and cost
    are both in ``full_reward_spec``, so TorchRL sums them over an episode with
    ``RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])``.

    Args:
        env_id: see above.
        num_envs: copies in all. The batch size is [] for one, [num_envs] for several in one process.
            TorchRL's own cost of a step, about 0.5 ms, is shared by the copies: 16 are enough for tasks
            of 2,000 raw steps/s, 64 for tasks of 20,000, to keep about four fifths of the raw speed.
        device: where the tensors are put; simulators other than PointCircle run on the CPU.
        seed: one seed, the same episodes: after construction, and after ``env.set_seed(seed)`` at the next
            reset. One copy is seeded by the seed itself, several by seeds derived from it
            (:class:`GymnasiumBatch`), workers by ``ParallelEnv.set_seed``.
        num_workers: processes; a divisor of ``num_envs``. With more than one, the batch size is
            [num_workers, num_envs / num_workers], or [num_workers] if each holds one copy. Collecting with
            several workers is faster through ``make_collector(num_workers=...)``, which does not wait for
            every process at every step.
        frame_skip: raw steps per step, ending early with the episode; reward and cost are summed.
        max_episode_steps: raw steps after which an episode is truncated; None keeps the environment's own.
        cost_keys: entries of a step's ``info`` that make up the m costs, in this order, for example
            ``("cost_hazards", "cost_vases")``; for PointCircle, some of ``("walls", "speed")``.
        render_mode: handed to the environment; then ``env.render()``.
        kwargs: handed to the environment.

    Raises:
        ValueError: a number outside its range, an unknown id (the nearest names are suggested), a space that
            is not supported, an environment without cost (one step is tried).
        ImportError: the package of the id is not installed.
        FloatingPointError: while stepping, for an action, observation, reward or cost that is not finite.

    Example:
        >>> env = make_env("PointCircle", num_envs=2, seed=0)
        >>> env.rollout(3)["next", "cost"].shape
        torch.Size([2, 3, 1])
    """
    check_counts(num_envs=num_envs, num_workers=num_workers, frame_skip=frame_skip)
    if max_episode_steps is not None:
        check_counts(max_episode_steps=max_episode_steps)
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be at least 0, or None, got {seed!r}")
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
    options["max_episode_steps"] = max_episode_steps
    if _BULLET.fullmatch(env_id):
        return functools.partial(_make_bullet, env_id, **options)
    # Safety-Gymnasium is asked first: it registers its ids with Gymnasium, too, which cannot make them.
    if env_id.startswith("Safety") and env_id in safety_gymnasium_ids():
        return functools.partial(make_safety_gymnasium, env_id, **options)
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)  # it registers its ids
        gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"unknown environment {env_id!r}{_nearest(env_id)}") from error
    return functools.partial(gymnasium.make, env_id, disable_env_checker=True, **options)


def _make_bullet(env_id: str, **options: Any) -> gymnasium.Env:
    if importlib.util.find_spec("bullet_safety_gym") is None:
        raise ImportError(
            f"{env_id} needs bullet-safety-gym, which has wheels for Python < 3.12: "
            "pip install pybullet && pip install --no-deps bullet-safety-gym==1.4.0"
        )
    importlib.import_module("bullet_safety_gym")  # registers the ids

    def make() -> gymnasium.Env:
        with np.errstate(over="ignore"):  # its spaces mix float32 and float64 bounds
            return gymnasium.make(env_id, disable_env_checker=True, **options)

    return OwnRandomState(make, in_step="Gather" in env_id or "Reach" in env_id)


def _nearest(env_id: str) -> str:
    known = ["PointCircle", *gymnasium.registry]
    with contextlib.suppress(ImportError):  # without Safety-Gymnasium its names are not worth suggesting
        known += safety_gymnasium_ids()
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(env_id.lower(), by_lower_case, 3, 0.5)
    if not near:
        return "; see gymnasium.registry and safety_gymnasium_ids()"
    return "; did you mean " + " or ".join(by_lower_case[name] for name in near) + "?"
