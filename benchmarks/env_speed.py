"""Steps per second of environments, side by side in one run.

Each row compares two ways of running the same task with the same actions, resets included. Each side runs in
a worker process of its own. The workers take turns, block by block, so that both see the same machine. The
ratio is the median over pairs of neighboring blocks.

    python benchmarks/env_speed.py                       # every row
    python benchmarks/env_speed.py --seconds 60 --only SafetyPointGoal1-v0
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

os.environ.setdefault("OMP_NUM_THREADS", "1")

BLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Side:
    """One way of running a task.

    ``start(*args)`` returns an iterator. Each ``next`` runs a whole episode or batch with its reset, and
    yields its number of steps. The first one is the warm-up.
    """

    name: str
    start: Callable[..., Iterator[int]]
    args: tuple


@dataclass(frozen=True)
class Row:
    """Two sides to compare, and what the project promises of ``other``, if anything."""

    task: str
    base: Side
    other: Side
    promised: float | None = None  # ratio to the base
    promised_speed: float | None = None  # steps/s


def safety_gymnasium(env_id: str, fast: bool) -> Iterator[int]:
    """Step one raw Safety-Gymnasium environment with uniform actions, by the package's own code or ours."""
    import numpy as np

    from safe_components.envs.safety_gymnasium import make_safety_gymnasium

    env = make_safety_gymnasium(env_id, fast=fast)
    env.reset(seed=0)
    random = np.random.RandomState(0)
    low, high = env.action_space.low.astype(float), env.action_space.high.astype(float)
    while True:
        count, done = 0, False
        while not done:
            *_, terminated, truncated, _ = env.step(random.uniform(low, high))
            count, done = count + 1, terminated or truncated
        env.reset()
        yield count


def safety_gymnasium_rows() -> list[Row]:
    """The package's own code path, texture decoding included, against the fast path."""
    promised = {
        "SafetyPointCircle1-v0": 5.0,
        "SafetyPointGoal1-v0": 2.5,
        "SafetyAntRun0-v0": 10.0,
        "SafetyCarButton1-v0": None,
        "SafetyHalfCheetahVelocity-v1": None,
    }
    return [
        Row(
            env_id,
            Side("package's own code", safety_gymnasium, (env_id, False)),
            Side("fast path", safety_gymnasium, (env_id, True)),
            ratio,
        )
        for env_id, ratio in promised.items()
    ]


def collected(env_id: str, num_envs: int, steps: int) -> Iterator[int]:
    """Collect batches of ``num_envs`` × ``steps`` through TorchRL, with uniform actions."""
    import functools

    import torch
    from tensordict import TensorDictBase

    from safe_components.collectors import make_collector
    from safe_components.envs import make_env

    torch.set_num_threads(1)
    make = functools.partial(make_env, env_id, num_envs=num_envs)
    bounds = make().action_spec.space
    low, width = bounds.low, bounds.high - bounds.low

    def uniform(td: TensorDictBase) -> TensorDictBase:
        return td.set("action", torch.rand_like(low).mul_(width).add_(low))

    for batch in make_collector(make, uniform, frames_per_batch=num_envs * steps, seed=0):
        yield batch.numel()


def point_circle(num_envs: int, steps: int) -> Iterator[int]:
    """Step PointCircle with the same action throughout, without TorchRL's loop around it."""
    import torch

    from safe_components.envs import PointCircle

    torch.set_num_threads(1)
    env = PointCircle(num_envs, seed=0)
    while True:
        td = env.rand_action(env.reset())
        for _ in range(steps):
            env.step(td)
        yield num_envs * steps


def collected_rows() -> list[Row]:
    """The raw fast path against collection through TorchRL, several copies in one process."""
    copies = {
        "SafetyPointCircle1-v0": (32, 500),
        "SafetyPointGoal1-v0": (32, 1000),
        "SafetyAntRun0-v0": (16, 500),
        "SafetyHalfCheetahVelocity-v1": (64, 1000),
    }
    rows = [
        Row(
            env_id,
            Side("fast path", safety_gymnasium, (env_id, True)),
            Side(f"collected, {num_envs} copies", collected, (env_id, num_envs, steps)),
            promised=0.8,
        )
        for env_id, (num_envs, steps) in copies.items()
    ]
    rows.append(
        Row(
            "PointCircle",
            Side("stepped, 4096 copies", point_circle, (4096, 100)),
            Side("collected, 4096 copies", collected, ("PointCircle", 4096, 100)),
            promised_speed=1e6,
        )
    )
    return rows


def rows() -> list[Row]:
    """Every row of the table."""
    return safety_gymnasium_rows() + collected_rows()


def serve(pipe: Connection, side: Side) -> None:
    """Run, in a worker process, for as many seconds as each request asks; answer the steps and the time."""
    steps = side.start(*side.args)
    next(steps)  # imports and the first episode do not count
    while (seconds := pipe.recv()) is not None:
        count, start = 0, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            count += next(steps)
        pipe.send((count, now - start))


def measure(row: Row, seconds: float) -> tuple[float, float, float]:
    """Steps per second of both sides, and the median ratio of neighbouring blocks.

    Blocks hold whole episodes, so that each bears its share of the resets.
    """
    context = multiprocessing.get_context("spawn")
    workers = []
    for side in (row.base, row.other):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, side), daemon=True)
        process.start()
        workers.append((process, ours))
    block = max(BLOCK_SECONDS, seconds / 12)
    totals, speeds = [[0, 0.0], [0, 0.0]], [[], []]
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(speeds[0]) < 3:
        for k, (_, pipe) in enumerate(workers):
            pipe.send(block)
            count, spent = pipe.recv()
            totals[k][0] += count
            totals[k][1] += spent
            speeds[k].append(count / spent)
    for process, pipe in workers:
        pipe.send(None)
        process.join()
    ratios = [other / base for base, other in zip(*speeds, strict=True)]
    base, other = (count / spent for count, spent in totals)
    return base, other, statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="time per row, both sides together")
    parser.add_argument("--only", nargs="*", default=None, metavar="TASK", help="tasks to run, by name")
    options = parser.parse_args()
    import gymnasium
    import mujoco
    import numpy

    print(
        f"Python {platform.python_version()}, MuJoCo {mujoco.__version__}, gymnasium "
        f"{gymnasium.__version__}, NumPy {numpy.__version__}; {options.seconds:g} s per row\n"
    )
    print("| task | from | to | from, steps/s | to, steps/s | median ratio | promised |")
    print("|---|---|---|---:|---:|---:|---:|")
    for row in rows():
        if options.only is not None and row.task not in options.only:
            continue
        base, other, ratio = measure(row, options.seconds)
        promised = "" if row.promised is None else f"≥ {row.promised:g}"
        if row.promised_speed is not None:
            promised = f"≥ {row.promised_speed:,.0f} steps/s"
        print(
            f"| {row.task} | {row.base.name} | {row.other.name} "
            f"| {base:,.0f} | {other:,.0f} | {ratio:.2f} | {promised} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
