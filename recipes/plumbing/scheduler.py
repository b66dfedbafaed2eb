"""Run the members of a study a few at a time, and say how they fare."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from plumbing.member_process import finished, frames_reached
from plumbing.members import Member
from plumbing.pool import MEMBER_PROCESS, Job, Pool, last_words
from safe_components.training import StopRequest

__all__ = ["Outcome", "run_members"]

_TICK, _COUNT_EVERY = 0.2, 1.0


@dataclasses.dataclass
class Outcome:
    """How the members of a study ended.

    Attributes:
        skipped: had finished before.
        finished: finished now.
        failed: ended with an error.
        stopped: were interrupted, or never started because the study was.
    """

    skipped: list[Member] = dataclasses.field(default_factory=list)
    finished: list[Member] = dataclasses.field(default_factory=list)
    failed: list[Member] = dataclasses.field(default_factory=list)
    stopped: list[Member] = dataclasses.field(default_factory=list)


def _command(member: Member) -> list[str]:
    arguments = [member.directory, member.config.total_frames, member.recipe, *member.flags]
    return [sys.executable, str(MEMBER_PROCESS), *map(str, arguments)]


def _end(member: Member, status: int, stopping: bool, outcome: Outcome, bar: tqdm) -> None:
    if finished(member.directory, member.config.total_frames):
        outcome.finished.append(member)
        bar.write(f"{member.name} finished")
    elif status == 0 or stopping:
        outcome.stopped.append(member)
        bar.write(f"{member.name} stopped at {frames_reached(member.directory)} frames")
    else:
        outcome.failed.append(member)
        bar.write(f"{member.name} FAILED: {last_words(member.log)} ({member.log})")


def run_members(members: Sequence[Member], pool: Pool, progress: bool = True) -> Outcome:
    """Run all that have not finished; a failure stops nobody else.

    Ctrl-C or SIGTERM asks those that run to save and leave and starts no more; a second one makes them
    leave at once.

    Args:
        members: in the order in which they start.
        pool: runs ``pool.slots`` at a time.
        progress: show a bar over the frames of all members.
    """
    outcome, running = Outcome(), dict[int, tuple[Member, Job]]()
    waiting: list[Member] = []
    for member in members:
        done = finished(member.directory, member.config.total_frames)
        (outcome.skipped if done else waiting).append(member)

    def frames() -> int:
        return sum(min(frames_reached(m.directory), m.config.total_frames) for m in members)

    total = sum(member.config.total_frames for member in members)
    stopping, counted = False, 0.0
    bar = tqdm(total=total, initial=frames(), unit="frame", disable=not progress, dynamic_ncols=True)
    if outcome.skipped:
        bar.write(f"{len(outcome.skipped)} of {len(members)} members had finished before")
    with bar, StopRequest() as stop:
        while running or waiting:
            try:
                if stop and not stopping:
                    stopping = True
                    outcome.stopped += waiting
                    waiting = []
                    for _, job in running.values():
                        job.stop()
                while waiting and len(running) < pool.slots:
                    member = waiting.pop(0)
                    member.directory.mkdir(parents=True, exist_ok=True)
                    running[id(member)] = (member, pool.start(_command(member), member.log))
                for key, (member, job) in list(running.items()):
                    if (status := job.poll()) is not None:
                        del running[key]
                        _end(member, status, stopping, outcome, bar)
                if time.monotonic() - counted > _COUNT_EVERY:
                    told = {"running": len(running), "waiting": len(waiting), "failed": len(outcome.failed)}
                    bar.set_postfix(told, refresh=False)
                    bar.update(frames() - bar.n)
                    counted = time.monotonic()
                time.sleep(_TICK)
            except KeyboardInterrupt:
                for _, job in running.values():
                    job.stop()
        bar.update(frames() - bar.n)
    return outcome
