"""Frames and seconds until a task is solved, by this library's recipes and by FSRL's agents.

Each side trains at its own defaults, one after the other, with one thread each on the same machine. A task is
solved at the first row where the episodes of the last 10,000 frames have at least the reward that is asked
for, and at most the cost of the limit, on average.

    make bench-peers                                        # FSRL, in an environment of its own
    python benchmarks/time_to_solve.py                      # CarRun, BallRun, CarCircle and PointGoal1
    python benchmarks/time_to_solve.py --tasks SafetyCarRun-v0 --frames 100000 --sides cvpo FSRL-CVPO
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner_peers import DEFAULT_PYTHON, INSTALL, ROOT

WINDOW = 10_000  # frames
SIDES = ("cvpo", "sac_lag", "FSRL-CVPO", "FSRL-SACLag")


@dataclass(frozen=True)
class Goal:
    """The reward to reach within the limit, and the frames after which a side gives up."""

    reward: float
    limit: float
    frames: int


GOALS = {
    "SafetyCarRun-v0": Goal(540.0, 10.0, 300_000),
    "SafetyBallRun-v0": Goal(430.0, 10.0, 400_000),
    "SafetyCarCircle-v0": Goal(350.0, 10.0, 1_000_000),
    "SafetyPointGoal1-v0": Goal(15.0, 25.0, 1_000_000),
}


@dataclass(frozen=True)
class Row:
    """The mean reward and cost of the episodes that ended since the row before."""

    frames: float
    seconds: float
    reward: float
    cost: float


def solved(rows: Sequence[Row], goal: Goal) -> Row | None:
    """Return the first row where the task is solved; None if there is none.

    Example:
        >>> rows = [Row(5_000, 1.0, 9.0, 0.0), Row(10_000, 2.0, 11.0, 8.0), Row(15_000, 3.0, 11.0, 4.0)]
        >>> solved(rows, Goal(reward=10.0, limit=10.0, frames=20_000)).frames
        10000
    """
    for i, row in enumerate(rows):
        recent = [r for r in rows[: i + 1] if r.frames > row.frames - WINDOW]
        reward, cost = (sum(getattr(r, name) for r in recent) / len(recent) for name in ("reward", "cost"))
        if row.frames >= WINDOW and reward >= goal.reward and cost <= goal.limit:
            return row
    return None


def train(recipe: str, task: str, goal: Goal, seed: int) -> list[Row]:
    """Train one of the recipes at its defaults; the task's file holds its limit and its frame skip."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        flags = f"--settings {task} --seed {seed} --total-frames {goal.frames} --log-interval 5000"
        flags += f" --eval-interval 0 --checkpoint-interval {2 * goal.frames} --no-progress"
        command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *flags.split()]
        _run([*command, "--run-dir", str(run)])
        with (run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["episode_reward"] not in ("", "nan")]
    names = ("frames", "wall_seconds", "episode_reward", "episode_cost")
    return [Row(*(float(row[name]) for name in names)) for row in rows]


def train_peer(agent: str, task: str, goal: Goal, seed: int, python: Path) -> Iterator[Row]:
    """Train one of FSRL's agents at its defaults, in its own environment; it is ended once it has solved."""
    settings = {"agent": agent, "task": task, "cost_limit": goal.limit, "frames": goal.frames, "seed": seed}
    script = ROOT / "benchmarks" / "peers" / "fsrl_train.py"
    read, write = os.pipe()
    with tempfile.TemporaryFile("w+") as messages, os.fdopen(read) as answers:
        command = [str(python), str(script), json.dumps(settings), str(write)]
        process = subprocess.Popen(
            command, stdout=messages, stderr=messages, pass_fds=(write,), env=_one_thread()
        )
        os.close(write)
        try:
            for line in answers:
                yield Row(**json.loads(line))
            if process.wait():
                messages.seek(0)
                raise RuntimeError("FSRL's process ended: " + "".join(messages.readlines()[-5:]))
        finally:
            process.kill()
            process.wait()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=_one_thread())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def measure(side: str, task: str, goal: Goal, seed: int, python: Path) -> str:
    """Train one side; return its row of the table."""
    if side.startswith("FSRL-"):
        if not python.exists():
            return f"| {task} | {side} | not installed: {INSTALL} | | | |"
        rows = []
        for row in train_peer(side.removeprefix("FSRL-"), task, goal, seed, python):
            rows.append(row)
            if solved(rows, goal):
                break
    else:
        rows = train(side, task, goal, seed)
    found, last = solved(rows, goal), rows[-1]
    reached = ("not reached", "") if found is None else (f"{found.frames:,.0f}", f"{found.seconds:.0f}")
    end = f"{last.reward:.1f} / {last.cost:.1f} at {last.frames:,.0f}"
    return f"| {task} | {side} | {reached[0]} | {reached[1]} | {end} | {last.frames / last.seconds:.0f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row of the table for each task, side and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--frames", type=int, help="frames after which a side gives up")
    parser.add_argument("--peers-python", type=Path, default=DEFAULT_PYTHON, help="interpreter that has FSRL")
    options = parser.parse_args(arguments)
    print(
        "| task | side | frames | seconds | last row, reward / cost | frames/s |\n|---|---|---|---|---|---|"
    )
    for task in options.tasks:
        goal = GOALS[task]
        goal = Goal(goal.reward, goal.limit, options.frames or goal.frames)
        for seed in options.seeds:
            for side in options.sides:
                print(measure(side, task, goal, seed, options.peers_python), flush=True)


if __name__ == "__main__":
    main()
