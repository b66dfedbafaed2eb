"""Whether a run fits into the memory of its device, before anything large is made."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from plumbing.off_policy import OffPolicyConfig
from plumbing.task import Task

__all__ = ["available_bytes", "memory_needed", "require_memory"]

_FLOAT, _DOUBLE, _LONG, _BOOL = 4, 8, 8, 1
# Weights, gradient, two moments of Adam, target.
_COPIES = 5
# Numbers of a layer that one critic scores at a time and thread on a CPU; elsewhere all score all.
_CPU_NUMBERS = 256 * 256


def memory_needed(
    config: OffPolicyConfig,
    *,
    observation_dim: int,
    action_dim: int,
    num_costs: int,
    reward_critics: int = 2,
    particles: int = 0,
    window: int | None = None,
) -> dict[str, int]:
    """Bytes by part: the buffers exactly, the networks to within their few buffers, an update at most.

        buffer     transitions (8 o + 4 a + 4 m + 21),  with window: transitions (4 o + 8) more
        networks   5 (4 bytes) parameters: weights, gradients, Adam's two moments, targets
        update     the activations of the particles' scores and of a critics' step, and the E-step's float64

    Args:
        config: of the run.
        observation_dim: ``o``.
        action_dim: ``a``.
        num_costs: ``m``.
        reward_critics: members of the reward's ensemble.
        particles: actions per state that are scored in an update.
        window: frames of a second buffer that holds observations only; None for no such buffer.

    Returns:
        ``buffer``, ``networks``, ``update``.
    """
    o, a, m = observation_dim, action_dim, num_costs
    # Observations, action, reward, costs; step count and index; the flag of the episode's end.
    row = _FLOAT * (2 * o + a + 1 + m) + 2 * _LONG + _BOOL
    buffer = config.buffer_size // config.env.frame_skip * row
    if window is not None and window < config.buffer_size:
        buffer += window // config.env.frame_skip * (_FLOAT * o + _LONG)

    hidden = config.hidden_sizes
    members = reward_critics + config.cost_critics
    policy = _parameters((o, *hidden, 2 * a + a * (a - 1) // 2))
    critics = members * _parameters((o + a, *hidden, m))

    scored = config.batch_size * particles
    if torch.device(config.device).type == "cpu":
        # The layers of some rows of one critic, and the factors of the first layer of all.
        scores = _CPU_NUMBERS * config.threads * 2 * len(hidden)
        scores += members * (1 + a) * (2 * config.batch_size * hidden[0] + 3 * scored)
    else:
        # Two neighbouring layers at a time, and three copies of the first where it is normalised.
        scores = members * scored * max([3 * hidden[0], *map(sum, itertools.pairwise(hidden))])
    # A step keeps each layer before and after its activation, and makes the gradients of both.
    step = config.batch_size * (2 * o + 4 * sum(hidden)) * (members + 1)
    # The E-step's estimates, centred, scaled, weighted: six copies of the reward's and of each cost's.
    estep = scored * (_DOUBLE * 6 * (1 + m) + _FLOAT * 3 * a)
    return {
        "buffer": buffer,
        "networks": _FLOAT * _COPIES * (policy + critics),
        "update": _FLOAT * (scores + step) + estep,
    }


def require_memory(
    config: OffPolicyConfig,
    task: Task,
    reward_critics: int = 2,
    particles: int = 0,
    window: int | None = None,
) -> None:
    """Stop where the run's device cannot hold it; the arguments are those of :func:`memory_needed`.

    Raises:
        ValueError: with the bytes needed, by part and with the settings that make them so many, and those
            that are there.
    """
    needed = memory_needed(
        config,
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        num_costs=task.num_costs,
        reward_critics=reward_critics,
        particles=particles,
        window=window,
    )
    total, there = sum(needed.values()), available_bytes(task.device)
    if there is None or total <= there:
        return
    hidden = " ".join(map(str, config.hidden_sizes))
    settings = {
        "buffer": f"buffer_size {config.buffer_size}",
        "networks": f"hidden_sizes {hidden}",
        "update": f"batch_size {config.batch_size}"
        + (f", num_particles {particles}" if particles else "")
        + f", hidden_sizes {hidden}",
    }
    parts = "; ".join(f"{part} {size:,} ({settings[part]})" for part, size in needed.items())
    raise ValueError(
        f"the run needs {total:,} bytes of memory on {task.device}, where {there:,} are free: {parts}"
    )


def available_bytes(device: torch.device, proc: Path = Path("/proc")) -> int | None:
    """Memory that a process may still take on ``device``; None where the system does not say.

    On the CPU the lesser of what the machine has and what the process's control group allows.
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
    """Bytes left to this process's control group and those above it, of either version."""
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
    except (OSError, ValueError):  # no such group here, or one that does not say
        return []
    # Pages of files that can be dropped are not needed.
    return [max(int(most) - used + int(stat.get(reclaimable, 0)), 0)]


def _parameters(sizes: tuple[int, ...]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))
