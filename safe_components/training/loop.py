"""The calls of a recipe's loop: collect frames, count the updates that are due, and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from safe_components import keys
from safe_components.collectors import OverlappedCollector, make_collector
from safe_components.training.averages import Averages, EpisodeStatistics, episode_summary
from safe_components.training.evaluation import evaluate
from safe_components.training.guards import require_finite
from safe_components.training.interrupt import workers_ignore_interrupt
from safe_components.training.options import CollectConfig, OffPolicyCollectConfig
from safe_components.training.run import Run
from safe_components.training.task import Task

__all__ = ["Loop"]


class Loop:
    """The collection of frames, the number of updates that follow, and the reports of a run.

        with Run(config, learner=learner, policy=policy, norm=task.norm, replay=replay) as run:
            loop = Loop(run, task, policy, OffPolicyCollectConfig(updates_per_frame=0.1))
            if run.frames == 0:
                replay.extend(loop.warm_up())
            for steps in loop.collect():
                replay.extend(steps)
                for _ in loop.updates_due():
                    loop.record(learner.update(replay.transitions()))
                loop.report()

    A resumed run starts new episodes, because the states of the environments are not saved.

    Args:
        run: open run.
        task: environments of the run.
        policy: policy that acts in evaluation, and also in training unless ``explore`` is given.
        collect: numbers of frames; an `OffPolicyCollectConfig` also gives the updates and the workers.
        explore: policy that acts in training if ``policy`` has no noise of its own.

    Attributes:
        episode_costs: undiscounted costs ``[n, m]`` of the ``n >= 0`` episodes that ended in the last batch.

    Raises:
        ValueError: if a batch is shorter than a step, or if the environments cannot be divided among the
            workers.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        policy: TensorDictModuleBase,
        collect: CollectConfig,
        *,
        explore: TensorDictModuleBase | None = None,
    ) -> None:
        self.run, self.task, self.policy = run, task, policy
        collect.validate(run.config)
        workers, pace = 0, 0.0
        if isinstance(collect, OffPolicyCollectConfig):
            workers, pace = collect.workers, collect.updates_per_frame
        self._acting = policy if explore is None else explore
        self._frames_per_batch = collect.frames_per_batch // run.config.env.frame_skip
        self._collect, self._workers, self._updates_per_frame = collect, workers, pace
        self._averages, self._episodes = Averages(), EpisodeStatistics(run.config.budget.cost_limit)
        self._since, self._owed = run.frames, 0.0
        self.episode_costs = torch.empty(0, task.num_costs)

    def warm_up(self, least_steps: int = 2) -> TensorDictBase:
        """Return steps ``[N, T]`` of random actions, whose statistics scale all observations.

        Args:
            least_steps: smallest number of steps in each environment, even if ``collect.warmup_frames`` asks
                for fewer.
        """
        frames, seed = self._collect.warmup_frames, self.run.config.run.seed
        with self.run.watch("collecting"):
            steps = self.task.warm_up(frames, seed, least_steps)
        self._take(steps)
        # These environments end here, so n-step windows must not continue into another episode.
        for flag in (keys.DONE, keys.TRUNCATED):
            steps[flag][..., -1, :] = True
        return steps

    def collect(self) -> Iterator[TensorDictBase]:
        """Yield batches of steps ``[N, T]`` of the current policy, until the run is finished.

        With workers the policy that collects a batch is one batch older.

        Raises:
            FloatingPointError: if an entry is not finite.
        """
        run, task = self.run, self.task
        seed = run.config.run.seed + run.frames
        with run.watch("collecting"):
            if self._workers:
                with workers_ignore_interrupt():
                    collector = OverlappedCollector(
                        task.worker_env(self._workers),
                        self._acting,
                        frames_per_batch=self._frames_per_batch,
                        num_workers=self._workers,
                        seed=seed,
                    )
            else:
                collector = make_collector(
                    lambda: task.training_env(seed),
                    self._acting,
                    frames_per_batch=self._frames_per_batch,
                    policy_device=task.device,
                    env_device=task.env_device,
                )
        run.on_exit(collector.shutdown)
        self._eval_env = task.evaluation_env()
        for batch in run.watch.each("collecting", collector):
            self._take(batch := batch.to(task.env_device))
            yield batch
            if run.finished:
                break
            collector.update_policy_weights_()

    def _take(self, steps: TensorDictBase) -> None:
        self._since = self.run.frames
        self.run.advance(steps.numel() * self.run.config.env.frame_skip)
        require_finite(steps, f"frame {self.run.frames}")
        self.episode_costs = self._episodes.add(steps)

    def updates_due(self) -> Iterator[int]:
        """Count the updates that are due after the last batch; yield the number of each within the run."""
        self._owed += (self.run.frames - self._since) * self._updates_per_frame
        while self._owed >= 1:
            self._owed -= 1
            self.run.count_update()
            yield self.run.updates

    def record(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Add the metrics of an update to the averages of the next row."""
        self._averages.add(metrics)

    def report(self, shown: tuple[str, ...] = ()) -> None:
        """Log, evaluate and save whatever is due after the last batch; log and evaluate at the end of a run.

        Args:
            shown: names of metrics that the progress bar shows in addition to reward and cost.

        Raises:
            FloatingPointError: if a metric is not finite.
        """
        run, settings = self.run, self.run.config.run
        if run.due(settings.log_interval, self._since) or run.finished:
            learned = self._averages.pop()
            require_finite(learned, f"frame {run.frames}")
            row = self._episodes.pop() | learned
            due = run.due(settings.eval_interval, self._since)
            if settings.eval_interval and (due or run.finished):
                with run.watch("evaluating"):
                    ended = evaluate(self.policy, self._eval_env, settings.eval_episodes, seed=settings.seed)
                limits = run.config.budget.cost_limit
                row |= episode_summary(ended["reward"], ended["cost"], limits, "eval")
            run.log(row, shown=("episode_reward", "episode_cost", *shown))
        if run.due(settings.checkpoint_interval, self._since):
            run.save()
