"""One factory for TorchRL's collectors, in this process, in several, or on Ray."""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import random
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

with warnings.catch_warnings():
    # Importing TorchRL's collectors warns about one of its own classes.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrl.collectors import BaseCollector, Collector, MultiAsyncCollector, MultiSyncCollector

_BACKENDS = ("process", "ray")


def make_collector(
    make_env_fn: Callable[[], EnvBase],
    policy: TensorDictModuleBase | Callable[..., Any] | None,
    *,
    frames_per_batch: int,
    total_frames: int = -1,
    num_workers: int = 0,
    backend: Literal["process", "ray"] = "process",
    sync: bool = True,
    device: torch.device | str | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> BaseCollector:
    """Make a TorchRL collector, an iterable of batches of ``frames_per_batch`` environment steps.

    | num_workers | backend | sync | result |
    |---|---|---|---|
    | 0 | process | - | ``Collector``: environment and policy run in this process |
    | ≥ 1 | process | True | ``MultiSyncCollector``: a batch waits for every worker |
    | ≥ 1 | process | False | ``MultiAsyncCollector``: a batch comes from one worker, as soon as it is ready |
    | ≥ 1 | ray | either | ``RayCollector``: workers run on a Ray cluster |

    Each worker holds its own environment. After an update call ``collector.update_policy_weights_()``. In
    this process the collector shares the policy's parameters and needs no update. With workers and a policy
    on the CPU, TorchRL moves the parameters to memory shared with the workers. A worker that steps during
    learning (``sync=False``) may then see them change in the middle of a batch. ``OverlappedCollector``
    collects during learning without this effect.

    **Seeds.** Without workers, ``seed`` seeds the environment, and the policy samples from torch's global
    generator. With workers, ``numpy.random.SeedSequence(seed).generate_state(num_workers)[i]`` seeds the
    environment and the global generators of torch, NumPy and Python in worker i. Without ``seed``, fresh
    entropy seeds them.

    Args:
        make_env_fn: called without arguments in each worker. With workers it must be picklable, for example
            ``functools.partial(make_env, "SafetyPointCircle1-v0", num_envs=8)``.
        policy: maps a TensorDict with an observation to one with an action; None acts at random.
        frames_per_batch: environment steps in a batch over all copies and workers.
        total_frames: environment steps after which iteration ends; −1 means that it never ends.
        num_workers: number of workers; 0 collects in this process.
        backend: ``"process"`` or ``"ray"``.
        sync: whether a batch waits for every worker.
        device: device of environment, policy and batches. None means the policy's device. If the policy has
            no parameters, None means the environment's device, or the CPU with workers.
        seed: see above.
        kwargs: handed to the TorchRL class.

    Raises:
        ValueError: if a number is out of range, or if every worker would have the same seed.
        ImportError: if the backend is Ray and Ray is not installed.

    Example:
        >>> import functools
        >>> from torchrl.envs import PendulumEnv
        >>> collector = make_collector(PendulumEnv, None, frames_per_batch=20, total_frames=40, seed=0)
        >>> [batch.numel() for batch in collector]
        [20, 20]
    """
    if not callable(make_env_fn) or isinstance(make_env_fn, EnvBase):
        raise ValueError(
            "make_env_fn must be a function that returns an environment, such as "
            f"functools.partial(make_env, id); got {type(make_env_fn).__name__}"
        )
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {_BACKENDS}, got {backend!r}")
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise ValueError(f"num_workers must be an integer of at least 0, got {num_workers!r}")
    if frames_per_batch < 1:
        raise ValueError(f"frames_per_batch must be at least 1, got {frames_per_batch!r}")
    if total_frames != -1 and total_frames < frames_per_batch:
        raise ValueError(
            f"total_frames must be -1 or at least frames_per_batch {frames_per_batch}, got {total_frames!r}"
        )
    # A given device saves a cast of every tensor at every step.
    own = _device_of(policy)
    device = device if device is not None else own
    options = {"frames_per_batch": frames_per_batch, "total_frames": total_frames, **kwargs}
    if policy is not None and own is None:
        options.setdefault("trust_policy", True)  # it has nothing to move, so TorchRL need not warn
    if backend == "process":
        # TorchRL appends these for recurrent policies and prints a message for every other policy.
        options.setdefault("auto_register_policy_transforms", False)
    if num_workers == 0:
        if backend != "process" or not sync:
            raise ValueError(f"backend={backend!r}, sync={sync} needs num_workers of at least 1")
        env = _seeded(make_env_fn, seed)
        return Collector(env, policy, device=device if device is not None else env.device, **options)
    options["device"] = device if device is not None else "cpu"

    if num_workers > 1 and _own_seed(make_env_fn) is not None:
        raise ValueError(
            f"make_env_fn fixes seed={_own_seed(make_env_fn)}, so every worker would collect the same "
            "episodes: leave the seed out there and pass it to make_collector(seed=...)"
        )
    states = np.random.SeedSequence(seed).generate_state(num_workers)
    factories = [
        functools.partial(_in_worker, make_env_fn, int(state), f"worker {i} of {num_workers}")
        for i, state in enumerate(states)
    ]
    if backend == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ImportError("backend='ray' needs Ray: pip install 'safe_components[ray]'")
        return Collector(factories, policy, backend="ray", sync=sync, **options)
    options.setdefault("num_threads", torch.get_num_threads())  # or TorchRL changes those of this process
    cls = MultiSyncCollector if sync else MultiAsyncCollector
    if sync:
        options.setdefault("cat_results", "stack")
    return cls(factories, policy, **options)


def _device_of(policy: Any) -> torch.device | None:
    parameters = policy.parameters() if isinstance(policy, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters), None)


def _own_seed(make_env_fn: Callable[[], EnvBase]) -> int | None:
    return getattr(make_env_fn, "keywords", {}).get("seed")


def _seeded(make_env_fn: Callable[[], EnvBase], seed: int | None) -> EnvBase:
    env = make_env_fn()
    if seed is not None:
        env.set_seed(seed)
    return env


def _in_worker(make_env_fn: Callable[[], EnvBase], seed: int, name: str) -> EnvBase:
    multiprocessing.current_process().name = name  # errors of environments hold it
    # A forked worker would start from its parent's generators and act like the other workers.
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return _seeded(make_env_fn, seed)
