"""Members of a study that are trained in one process, with the updates of many as one batch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any

import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from safe_components.studies.member_process import alone, finished, frames_reached, mark_finished, place_of
from safe_components.studies.plan import Member
from safe_components.studies.pool import last_words
from safe_components.studies.schedule import Outcome
from safe_components.training import (
    Learner,
    Population,
    RandomStream,
    StopRequest,
    Task,
    execute,
    leaves,
    parse_config,
    require_memory_together,
    with_run,
)
from safe_components.training.launch import EXPLAINED
from safe_components.training.recipes import load_recipe

__all__ = ["batches_of", "run_batches"]

# Settings in which the members of a batch may differ: paths, or their beginnings. Each of these numbers is a
# tensor, an option of an optimizer, or is read outside of the update.
NUMBERS = (
    "run.",
    "env.num_",
    "collect.",
    "budget.",
    "replay.size",
    "replay.window",
    "policy.lr",
    "critics.lr",
    "critics.polyak",
    "critics.n_step",
    "critics.warmup_updates",
    "estep.epsilon",
    "multiplier.",
    "trust_region.",
    "reference.",
)
_COUNT_EVERY = 1.0  # seconds


def batches_of(members: Sequence[Member]) -> list[list[Member]]:
    """Divide members into batches whose variants differ in numbers only.

    Raises:
        ValueError: with one line, if a member cannot be trained in a batch.
    """
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        _require_batchable(member)
        values = leaves(member.config)
        # The cap of λ is a number of the E-step's solver, which all members of a batch share.
        numbers = tuple(n for n in NUMBERS if n != "multiplier." or values["multiplier"] != "dual")
        structure = (item for item in values.items() if not item[0].startswith(numbers))
        groups.setdefault((member.recipe, *structure), []).append(member)
    return list(groups.values())


def _require_batchable(member: Member) -> None:
    values, who = leaves(member.config), f"variant {member.label} cannot be trained with --batched"
    if not hasattr(load_recipe(member.recipe), "train"):
        raise ValueError(f"{who}: {member.recipe.name} makes its updates itself; cvpo.py can be batched")
    allowed = {
        "policy": ("gaussian", "tanh"),
        "execution.mode": ("eager", "graph"),
        "collect.workers": (0,),
    }
    for path, possible in allowed.items():
        if path in values and values[path] not in possible:
            choices = " or ".join(map(str, possible))
            raise ValueError(f"{who}: {path} is {values[path]}, must be {choices}")


def run_batches(groups: Sequence[Sequence[Member]], progress: bool = True) -> Outcome:
    """Train all members that have not finished, one batch after another, in this process.

    A member that fails does not stop the others. After Ctrl-C or SIGTERM all runs save and end.

    Args:
        groups: batches, from :func:`batches_of`.
        progress: whether to show a progress bar over the frames of all members.

    Raises:
        ValueError: before anything is trained, if the memory of the device is too small for a batch.
    """
    outcome, members = Outcome(), [member for group in groups for member in group]
    for group in groups:
        task = Task(with_run(group[0].config, eval_episodes=1))
        require_memory_together([member.config for member in group], task)
        task.evaluation_env().close()
    total = sum(member.config.run.total_frames for member in members)
    bar = tqdm(total=total, unit="frame", disable=not progress, dynamic_ncols=True)

    def count() -> None:
        reached = (min(frames_reached(m.directory), m.config.run.total_frames) for m in members)
        bar.update(sum(reached) - bar.n)

    with bar, StopRequest() as stop:
        for group in groups:
            done = [m for m in group if finished(m.directory, m.config.run.total_frames)]
            outcome.skipped += done
            left = [member for member in group if member not in done]
            if stop:
                outcome.stopped += left
            else:
                _run_batch(left, outcome, count)
        count()
    for member in outcome.failed:
        print(f"{member.name} FAILED: {last_words(member.log)} ({member.log})")
    return outcome


class _Course:
    """The training of one member, which goes on whenever it is its turn.

    Attributes:
        member: the member.
        learner: its learner.
        batches: batches of the update that the training waits for; None once it has ended.
        error: what ended it, if it did not end well.
    """

    def __init__(self, member: Member) -> None:
        self.member, self.stream = member, RandomStream()
        self.batches: tuple[TensorDictBase, ...] | None = None
        self.error: BaseException | None = None
        self._training: Any = None
        self.learner: Learner | None = self._go_on(self._start)
        if self.learner is not None:
            self.batches = self._go_on(lambda: next(self._training))

    def _start(self) -> Learner:
        recipe: Any = load_recipe(self.member.recipe)
        arguments = ["--config", str(self.member.write()), *place_of(self.member.directory)]
        config = parse_config(recipe.Config, arguments)
        self._training = recipe.train(config)
        learner: Learner = next(self._training)
        execute(config.execution, learner, _device(learner))  # refuses what the device cannot do
        return learner

    def send(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Hand over the metrics of the update, and let the member train up to its next one."""
        self.batches = self._go_on(lambda: self._training.send(metrics))

    def throw(self, error: Exception) -> None:
        """Let the member end with an error of the update."""
        self.batches = self._go_on(lambda: self._training.throw(error))

    def close(self) -> None:
        """End the training where it is."""
        if self._training is not None:
            self._training.close()

    def _go_on(self, step: Callable[[], Any]) -> Any:
        """Take the member's turn, with its random numbers and its log; return what it asks for, or None."""
        with self.member.log.open("a", encoding="utf-8") as log, self.stream.turn(), redirect_stdout(log):
            try:
                return step()
            except StopIteration:
                return None
            except (Exception, SystemExit) as error:  # a command line that is refused exits
                self.error = error
                explained = isinstance(error, (*EXPLAINED, SystemExit))
                print(f"error: {error}" if explained else traceback.format_exc())
                return None


def _run_batch(members: Sequence[Member], outcome: Outcome, count: Callable[[], None]) -> None:
    """Train members of one structure side by side until each has ended."""
    with ExitStack() as held:
        for member in members:
            member.directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(member.directory))
        courses = [_Course(member) for member in members]
        for course in courses:
            held.callback(course.close)
        _train_together(courses, count)
        for course in courses:
            member, frames = course.member, course.member.config.run.total_frames
            if course.error is None:
                mark_finished(member.directory, frames)
            ended = outcome.finished if finished(member.directory, frames) else outcome.stopped
            (ended if course.error is None else outcome.failed).append(member)


def _train_together(courses: Sequence[_Course], count: Callable[[], None]) -> None:
    """Make the updates that the trainings ask for, those of all members at once."""
    together: list[_Course] = []
    counted = 0.0
    while active := [course for course in courses if course.batches is not None]:
        asked = [course.batches for course in active if course.batches is not None]
        try:
            if active != together:  # at first, and when a member has ended
                learners = [course.learner for course in active if course.learner is not None]
                population, together = Population(learners, asked[0]), active
                config: Any = active[0].member.config
                update = execute(config.execution, population, _device(learners[0]))
            noise = []
            for course in active:
                with course.stream.turn():
                    noise.append(population.draw_noise())
            batches = (torch.stack(list(same)) for same in zip(*asked, strict=True))
            metrics = update(*batches, population.stack_noise(noise))
        except Exception as error:  # a learner may raise anything; every member ends with it
            for course in active:
                course.throw(error)
            continue
        for index, course in enumerate(active):
            course.send({name: value[index] for name, value in metrics.items()})
        if time.monotonic() - counted > _COUNT_EVERY:
            count()
            counted = time.monotonic()


def _device(learner: Learner) -> torch.device:
    return next(learner.parameters()).device
