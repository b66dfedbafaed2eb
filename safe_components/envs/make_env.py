"""``make_env`` makes every constrained environment by its id."""

from __future__ import annotations

import contextlib
import difflib
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, ParallelEnv

from safe_components.envs.base import check_counts
from safe_components.envs.bullet import BULLET_ID, make_bullet
from safe_components.envs.from_factory import env_from_factory
from safe_components.envs.gpu_simulator import is_gpu_simulator, make_gpu_simulator
from safe_components.envs.gymnasium_batch import GymnasiumBatch
from safe_components.envs.headless import render_without_screen
from safe_components.envs.point_circle import PointCircle
from safe_components.envs.safety_gymnasium import make_safety_gymnasium, safety_gymnasium_ids
from safe_components.envs.time_limit import TimeLimit
from safe_components.ops import import_module, is_import_path


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
    step_timeout: float | None = None,
    flatten: bool = True,
    **kwargs: Any,
) -> EnvBase:
    """Make a constrained environment, whose steps write a reward [..., 1] and m costs [..., m], float32.

    | ``env_id`` | cost |
    |---|---|
    | of Safety-Gymnasium, ``"SafetyPointGoal1-v0"`` | the step's own, or its parts with ``cost_keys`` |
    | of Gymnasium, ``"Id-v0"`` or ``"module:Id-v0"`` | ``info["cost"]``, a number or a vector |
    | ``"package.module:factory"``, a function or class that makes one | as above, or an entry of the step |
    | of bullet-safety-gym, ``"SafetyBallRun-v0"`` | ``info["cost"]``; the package is an optional extra |
    | ``"PointCircle"`` | leaving the band between two walls; see ``PointCircle`` |
    | of Brax, ``"brax/SafetyAntVelocity"`` | 1 while the speed is above a limit; an optional extra |
    | of CRAX, ``"crax/safe_goal_point_level_2"`` | ``info["cost"]``; an optional extra |

    What follows the colon is looked up among the names of the module, and then among the ids that Gymnasium
    knows after the import. A factory makes a ``gymnasium.Env`` or an ``EnvBase`` of TorchRL; see
    `env_from_factory` for its arguments. Modules are looked for in the current directory, too.

    Observation spaces are flattened into one float32 vector, and Discrete and MultiDiscrete actions are
    one-hot. Actions outside the bounds are *executed* clipped to them, but the stored action stays as
    sampled. Reward and cost
    are both in ``full_reward_spec``, so TorchRL sums them over an episode with
    ``RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])``.

    Args:
        env_id: see above.
        num_envs: total number of copies. The batch size is [] for one copy and [num_envs] for several in one
            process. The copies share TorchRL's overhead of about 0.5 ms per step. To keep about four
            fifths of the raw speed, use 16 copies of tasks that run 2,000 raw steps/s, 64 at 20,000.
        device: where the tensors are put. PointCircle, Brax and CRAX simulate there, too (see
            ``lives_on_device``), and so may an ``EnvBase`` of your own; other simulators run on the CPU.
        seed: the same seed gives the same episodes, both at construction and with ``env.set_seed(seed)``
            at the next reset. One copy is seeded with the seed itself, several with seeds derived from it
            (see ``GymnasiumBatch``), workers by ``ParallelEnv.set_seed``.
        num_workers: number of processes, a divisor of ``num_envs``. With more than one, the batch size is
            [num_workers, num_envs / num_workers], or [num_workers] if each holds one copy. To collect with
            several workers, ``make_collector(num_workers=...)`` is faster, because it does not wait for
            every process at every step.
        frame_skip: raw steps per step, fewer at the end of an episode. Reward and cost are summed.
        max_episode_steps: raw steps after which an episode is truncated; None keeps the environment's own.
        cost_keys: entries of a step's ``info`` that make up the m costs, in this order, for example
            ``("cost_hazards", "cost_vases")``. For PointCircle, some of ``("walls", "speed")``. Empty for no
            costs: m = 0, and any Gymnasium environment will do.
        render_mode: handed to the environment. ``"rgb_array"`` makes ``env.render()`` return an image.
        step_timeout: seconds after which a call of an environment's ``step`` or ``reset`` counts as hanging
            and is interrupted (see ``GymnasiumBatch``); None waits forever. It has no effect on environments
            that live on the device.
        flatten: whether the observations of a Gymnasium environment are flattened into one vector. False
            gives each part of a dictionary its own entry, in its shape; images stay in uint8. Environments of
            TorchRL write the entries that they have.
        kwargs: handed to the environment, or to the factory.

    Raises:
        ValueError: if a number is out of range, if the id is unknown (the message suggests similar names), if
            a space is not supported, if the environment has no cost (one step is tried), or if an environment
            returns something that it must not.
        ImportError: if the id's package is not installed, or if importing its module fails.
        FloatingPointError: while stepping, if an action, observation, reward or cost is not finite.
        EnvironmentFailure: if an environment raises an error, which is the ``__cause__``.
        TimeoutError: if an environment hangs.

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
    if kwargs.pop("autoreset", False):
        raise ValueError(
            "autoreset must be left out: TorchRL resets environments, and needs last observations"
        )
    if is_gpu_simulator(env_id):
        return make_gpu_simulator(
            env_id,
            num_envs=num_envs,
            device=device,
            seed=seed,
            num_workers=num_workers,
            frame_skip=frame_skip,
            max_episode_steps=max_episode_steps,
            cost_keys=cost_keys,
            render_mode=render_mode,
            options=kwargs,
        )
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
            step_timeout=step_timeout,
            flatten=flatten,
            **kwargs,
        )
        names = [{"name": f"worker {i} of {num_workers}"} for i in range(num_workers)]
        env = _Workers(
            num_workers, functools.partial(_in_worker, one), create_env_kwargs=names, device=device
        )
        if seed is not None:
            env.set_seed(seed)
        return env
    shared: dict[str, Any] = {"num_envs": num_envs, "device": device, "seed": seed, "frame_skip": frame_skip}
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
        render_without_screen()
    if env_id == "PointCircle":
        if tuple(cost_keys) != ("cost",):
            kwargs["costs"] = tuple(cost_keys)
        if max_episode_steps is not None:
            kwargs["episode_length"] = max_episode_steps
        return PointCircle(**shared, **kwargs)
    if ":" in env_id:
        factory = _named(env_id)
        if factory is not None:
            return env_from_factory(
                factory,
                env_id,
                num_envs=num_envs,
                device=device,
                seed=seed,
                frame_skip=frame_skip,
                max_episode_steps=max_episode_steps,
                cost_keys=cost_keys,
                step_timeout=step_timeout,
                flatten=flatten,
                **kwargs,
            )
    make = _constructor(env_id, max_episode_steps=max_episode_steps, **kwargs)
    return GymnasiumBatch(make, cost_keys=cost_keys, step_timeout=step_timeout, flatten=flatten, **shared)


def lives_on_device(env_id: str) -> bool:
    """Return whether an environment may simulate on the device of its tensors, in one process.

    A function of one's own, ``"package.module:name"``, is given the device and may ignore it.

    Example:
        >>> lives_on_device("PointCircle"), lives_on_device("SafetyPointGoal1-v0")
        (True, False)
    """
    return env_id == "PointCircle" or is_gpu_simulator(env_id) or is_import_path(env_id)


class _Workers(ParallelEnv):  # type: ignore[misc]  # torchrl has no types
    """A ``ParallelEnv`` whose ``reset(seed=...)`` is ``set_seed`` and a reset: no two workers are alike."""

    def _reset(self, tensordict: TensorDictBase, *, seed: int | None = None, **kwargs: Any) -> TensorDictBase:
        if seed is not None:
            self.set_seed(seed)
        return super()._reset(tensordict, **kwargs)


def _in_worker(make: Callable[[], EnvBase], name: str) -> EnvBase:
    multiprocessing.current_process().name = name  # error messages hold it
    return make()


def _constructor(env_id: str, **options: Any) -> Callable[[], gymnasium.Env[Any, Any]]:
    if BULLET_ID.fullmatch(env_id):
        return functools.partial(make_bullet, env_id, **options)
    module, _, name = env_id.rpartition(":")
    # Safety-Gymnasium comes first, because it also registers its ids with Gymnasium, which cannot make them.
    if name.startswith("Safety") and name in _safety_ids(name):
        return functools.partial(make_safety_gymnasium, name, **options)
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        neither = f": {module!r} has no {name!r}, nor is that an id" if module else ""
        raise ValueError(f"unknown environment {env_id!r}{neither}{_nearest(name)}") from error
    return functools.partial(_make_gymnasium, name, **options)


def _safety_ids(name: str) -> list[str]:
    try:
        return safety_gymnasium_ids()
    except ImportError:
        if name in gymnasium.registry:  # it belongs to a package of the user
            return []
        raise


def _named(env_id: str) -> Any:
    """Import the module of ``"module:name"``, which may register ids; return what it calls ``name``."""
    module, _, name = env_id.rpartition(":")
    part: Any = import_module(module, f"the environment is {env_id!r}")
    for word in name.split("."):
        part = getattr(part, word, None)
    return part


def _make_gymnasium(
    env_id: str, *, max_episode_steps: int | None = None, **options: Any
) -> gymnasium.Env[Any, Any]:
    # Gymnasium's own time limit and checker refuse steps of six values.
    env = gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **options)
    limit = max_episode_steps or gymnasium.spec(env_id).max_episode_steps
    return env if limit is None else TimeLimit(env, limit)


def _nearest(env_id: str) -> str:
    known = ["PointCircle", *gymnasium.registry]
    with contextlib.suppress(ImportError):  # without Safety-Gymnasium its names are not suggested
        known += safety_gymnasium_ids()
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(env_id.lower(), by_lower_case, 3, 0.5)
    if not near:
        return "; see gymnasium.registry and safety_gymnasium_ids()"
    return "; did you mean " + " or ".join(by_lower_case[name] for name in near) + "?"
