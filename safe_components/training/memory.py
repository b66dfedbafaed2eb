"""A check, before anything large is allocated, that a run fits into the memory of its device."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safe_components.envs.gpu_simulator import is_gpu_simulator
from safe_components.training.options import CollectConfig, OffPolicyConfig, RecipeConfig
from safe_components.training.task import Task

__all__ = ["available_bytes", "memory_needed", "require_memory", "require_memory_together"]

_FLOAT, _DOUBLE, _LONG, _BOOL = 4, 8, 8, 1
# The weights, their gradients, the two moments of Adam and the target.
_COPIES = 5
# Numbers in a layer that one critic computes at a time per CPU thread. On other devices all critics compute
# all rows at once.
_CPU_NUMBERS = 256 * 256


def memory_needed(
    config: RecipeConfig,
    *,
    observation_dim: int,
    action_dim: int,
    num_costs: int,
    particles: int = 0,
    window: int | None = None,
    batched: bool = False,
    observation_bytes: int | None = None,
) -> dict[str, int]:
    """Estimate the bytes that each part of a run needs.

    The estimate is exact for the buffers, close for the networks, and an upper bound for an update. For a
    recipe without a replay buffer it covers the batch alone.

        buffer     transitions (8 o + 4 a + 4 m + 21),  with window: transitions (4 o + 8) more
        networks   5 (4 bytes) parameters: weights, gradients, Adam's two moments, targets
        batch      the steps that are collected with one policy, or at random
        update     the activations of the particles' scores and of a critics' step, and the E-step's float64

    Args:
        config: configuration of the run.
        observation_dim: ``o``.
        action_dim: ``a``.
        num_costs: ``m``.
        particles: number of actions per state that an update scores.
        window: frames of a second buffer that holds observations only; None if there is no such buffer.
        batched: whether the run is a member of a batch, whose critics compute all rows at once on a CPU, too.
        observation_bytes: bytes of one stored state, ``4 o`` without an encoder.

    Returns:
        The bytes of ``buffer``, ``networks``, ``update`` and ``batch``.
    """
    o, a, m = observation_dim, action_dim, num_costs
    state = _FLOAT * o if observation_bytes is None else observation_bytes
    needed: dict[str, int] = {}
    if isinstance(config, OffPolicyConfig):
        needed = _learner_needs(config, o, a, m, particles, window, batched, state)
    collect: CollectConfig | None = getattr(config, "collect", None)
    if collect is not None:
        steps = max(collect.frames_per_batch, collect.warmup_frames) // config.env.steps_per_action
        # Both observations, the action and its distribution, rewards, costs and their sums; counts and flags.
        rest = _FLOAT * (2 * a + a * a + 3 * (1 + m)) + 2 * _LONG + 6 * _BOOL
        needed["batch"] = steps * (2 * state + rest)
    return needed


def _learner_needs(
    config: OffPolicyConfig,
    o: int,
    a: int,
    m: int,
    particles: int,
    window: int | None,
    batched: bool,
    state: int,
) -> dict[str, int]:
    # Both observations, the action, the reward and the costs; step count and index; the termination flag.
    row = 2 * state + _FLOAT * (a + 1 + m) + 2 * _LONG + _BOOL
    frame_skip = config.env.steps_per_action
    buffer = config.replay.size // frame_skip * row
    if window is not None and window < config.replay.size:
        buffer += window // frame_skip * (state + _LONG)

    critics, batch = config.critics, config.replay.batch_size
    members, hidden = critics.reward_members + critics.cost_members, critics.hidden_sizes
    of_policy = config.policy.hidden_sizes
    parameters = _parameters((o, *of_policy, 2 * a + a * (a - 1) // 2))
    parameters += members * _parameters((o + a, *hidden, m))

    scored = batch * particles
    if torch.device(config.run.device).type == "cpu" and not batched:
        # The layers of some rows of one critic, and the factors of the first layer of all critics.
        scores = _CPU_NUMBERS * config.run.threads * 2 * len(hidden)
        scores += members * (1 + a) * (2 * batch * hidden[0] + 3 * scored)
    else:
        # Two adjacent layers at a time, and three copies of the first layer if it is normalized.
        scores = members * scored * max([3 * hidden[0], *map(sum, itertools.pairwise(hidden))])
    # A step keeps each layer before and after its activation, and computes the gradients of both.
    step = batch * ((2 * o + 4 * sum(hidden)) * members + 2 * o + 4 * sum(of_policy))
    # The E-step holds six copies (centered, scaled, weighted) of the estimates of the reward and each cost.
    estep = scored * (_DOUBLE * 6 * (1 + m) + _FLOAT * 3 * a)
    return {
        "buffer": buffer,
        "networks": _FLOAT * _COPIES * parameters,
        "update": _FLOAT * (scores + step) + estep,
    }


def require_memory(
    config: RecipeConfig, task: Task, *, particles: int = 0, window: int | None = None
) -> None:
    """Raise ValueError if the memory of the device is too small for the run.

    Args:
        config: configuration of the run.
        task: environments of the run.
        particles: number of actions per state that an update scores.
        window: frames of a second buffer that holds observations only; None if there is no such buffer.

    Raises:
        ValueError: with the free bytes, the bytes that each part needs, and the settings that determine them.
    """
    needed = memory_needed(
        config,
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        num_costs=task.num_costs,
        particles=particles,
        window=window,
        observation_bytes=task.observation_bytes,
    )
    total, there = sum(needed.values()), available_bytes(task.device)
    if there is None or total <= there:
        return
    parts = "; ".join(
        f"{part} {size:,} ({_settings_of(config, part, particles)})" for part, size in needed.items()
    )
    shared = task.device.type == "cuda" and is_gpu_simulator(config.env.id)
    hint = "; JAX holds memory, too: XLA_PYTHON_CLIENT_PREALLOCATE=false limits it to its needs"
    raise ValueError(
        f"the run needs {total:,} bytes of memory on {task.device}, where {there:,} are free: {parts}"
        + hint * shared
    )


def require_memory_together(configs: Sequence[Any], task: Task) -> None:
    """Raise ValueError if the memory of the device is too small for runs that are trained as one batch.

    Args:
        configs: configurations of the runs.
        task: environments of one of them.

    Raises:
        ValueError: with the free bytes, and the bytes that each part of all runs needs.
    """
    sizes = {name: getattr(task, name) for name in ("observation_dim", "action_dim", "num_costs")}
    needed = Counter[str]()
    for config in configs:
        estep, window = getattr(config, "estep", None), getattr(config.replay, "window", None)
        particles = getattr(estep, "num_particles", 0)
        needed.update(memory_needed(config, **sizes, particles=particles, window=window, batched=True))
    total, there = sum(needed.values()), available_bytes(task.device)
    if there is not None and total > there:
        parts = ", ".join(f"{part} {size:,}" for part, size in needed.items())
        raise ValueError(
            f"{len(configs)} runs as one batch need {total:,} bytes of memory on {task.device}, where "
            f"{there:,} are free: {parts}; use fewer --seeds or --variants, or a smaller replay.size"
        )


def _settings_of(config: Any, part: str, particles: int) -> str:
    """Return the settings that determine the size of a part, with their values."""
    if part == "batch":
        collected, random = config.collect.frames_per_batch, config.collect.warmup_frames
        return f"collect.frames_per_batch {collected}, collect.warmup_frames {random}"
    if part == "buffer":
        return f"replay.size {config.replay.size}"
    hidden = f"critics.hidden_sizes {' '.join(map(str, config.critics.hidden_sizes))}"
    if part == "networks":
        return hidden
    scored = f", estep.num_particles {particles}" if particles else ""
    return f"replay.batch_size {config.replay.batch_size}{scored}, {hidden}"


def available_bytes(device: torch.device, proc: Path = Path("/proc")) -> int | None:
    """Return the bytes that this process may still allocate on ``device``; None if the system does not tell.

    On the CPU this is the smallest of the machine's free memory and the limits of the process's control
    groups.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    machine = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*machine, *_group_room(proc)], default=None)


def _group_room(proc: Path) -> list[int]:
    """Return the free bytes of this process's control group and its parents, of cgroup version 1 or 2."""
    try:
        groups = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "self" / "mounts").read_text().splitlines()]
    except OSError:
        return []
    room = []
    for _, controllers, path in groups:
        if controllers == "":
            kind, names = "cgroup2", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            kind = "cgroup"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for _, root, found, options, *_ in mounts:
            if found == kind and (kind == "cgroup2" or "memory" in options.split(",")):
                # Inside a container the mount may show the process's own group as its root.
                folder = Path(root) / path.lstrip("/")
                for group in (folder, *folder.parents):
                    room += _limit(group, *names)
                    if group == Path(root):
                        break
    return room


def _limit(group: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return []
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the group does not exist here, or it has no such file
        return []
    # Reclaimable pages of files do not count as used.
    return [max(int(most) - used + int(stat.get(reclaimable, 0)), 0)]


def _parameters(sizes: tuple[int, ...]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
