"""Execution of the members of a study, a few at a time."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from safe_components.studies.member_process import finished, frames_reached
from safe_components.studies.plan import Member
from safe_components.studies.pool import Job, Pool, last_words
from safe_components.training import StopRequest

__all__ = ["Outcome", "run_members"]

_MEMBER_PROCESS = Path(__file__).with_name("member_process.py")
_TICK, _COUNT_EVERY = 0.2, 1.0  # seconds


@dataclasses.dataclass
class Outcome:
    """The members of a study, grouped by how they ended.

    Attributes:
        skipped: members that had finished before.
        finished: members that finished now.
        failed: members that ended with an error.
        stopped: members that were interrupted, or that did not start because the study was interrupted.
    """

    skipped: list[Member] = dataclasses.field(default_factory=list)
    finished: list[Member] = dataclasses.field(default_factory=list)
    failed: list[Member] = dataclasses.field(default_factory=list)
    stopped: list[Member] = dataclasses.field(default_factory=list)


def _command(member: Member) -> list[str]:
    arguments = [member.directory, member.config.run.total_frames, member.recipe]
    return [sys.executable, *map(str, [_MEMBER_PROCESS, *arguments])]


@dataclasses.dataclass
class _Started:
    """A member whose process runs, and the size of its log when that process started."""

    member: Member
    job: Job
    said: int

    @classmethod
    def start(cls, member: Member, pool: Pool) -> _Started:
        member.write()
        said = member.log.stat().st_size if member.log.is_file() else 0
        return cls(member, pool.start(_command(member), member.log), said)


def _end(started: _Started, status: int, stopping: bool, outcome: Outcome, bar: tqdm) -> None:
    member = started.member
    if finished(member.directory, member.config.run.total_frames):
        outcome.finished.append(member)
        bar.write(f"{member.name} finished")
    elif status == 0 or stopping:
        outcome.stopped.append(member)
        bar.write(f"{member.name} stopped at {frames_reached(member.directory)} frames")
    else:
        outcome.failed.append(member)
        why = started.job.lost_by() or last_words(member.log, started.said)
        bar.write(f"{member.name} FAILED: {why} ({member.log})")


def run_members(members: Sequence[Member], pool: Pool, progress: bool = True) -> Outcome:
    """Run all members that have not finished; the failure of one member does not stop the others.

    After Ctrl-C or SIGTERM the running members save and exit, and no further member starts. A second signal
    makes them exit at once.

    Args:
        members: members in the order in which they start.
        pool: pool of processes, which runs ``pool.slots`` members at a time.
        progress: whether to show a progress bar over the frames of all members.
    """
    outcome, running = Outcome(), list[_Started]()
    waiting: list[Member] = []
    for member in members:
        done = finished(member.directory, member.config.run.total_frames)
        (outcome.skipped if done else waiting).append(member)

    def frames() -> int:
        return sum(min(frames_reached(m.directory), m.config.run.total_frames) for m in members)

    total = sum(member.config.run.total_frames for member in members)
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
                    for started in running:
                        started.job.stop()
                while waiting and len(running) < pool.slots:
                    running.append(_Started.start(waiting.pop(0), pool))
                for started in list(running):
                    if (status := started.job.poll()) is not None:
                        running.remove(started)
                        _end(started, status, stopping, outcome, bar)
                if time.monotonic() - counted > _COUNT_EVERY:
                    told = {"running": len(running), "waiting": len(waiting), "failed": len(outcome.failed)}
                    bar.set_postfix(told, refresh=False)
                    bar.update(frames() - bar.n)
                    counted = time.monotonic()
                time.sleep(_TICK)
            except KeyboardInterrupt:
                for started in running:
                    started.job.stop()
        bar.update(frames() - bar.n)
    return outcome
