"""The calls of a recipe's loop: collect frames, count the updates that are due, and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torchrl.checkpoint import GlobalRNGState

from safe_components import keys
from safe_components.collectors import OverlappedCollector, make_collector
from safe_components.envs.base import ConstrainedEnv, StateError
from safe_components.training.averages import Averages, EpisodeStatistics, episode_summary
from safe_components.training.evaluation import evaluate
from safe_components.training.exploration import DeterministicEpisodes, constrained_steps
from safe_components.training.guards import require_bounded_losses, require_finite
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

    A resumed run continues where its checkpoint was written: in the middle of the episodes, with the same
    random streams. On the CPU with one thread it is the run that was never stopped, bit for bit. If the
    environments cannot save their state, which worker processes never can, it starts new episodes and says
    so.

    Args:
        run: open run.
        task: environments of the run.
        policy: policy that acts in evaluation, and also in training unless ``explore`` is given.
        collect: numbers of frames; an `OffPolicyCollectConfig` also gives the updates and the workers.
        explore: policy that acts in training if ``policy`` has no noise of its own.

    Attributes:
        episode_costs: undiscounted costs ``[n, m]`` of the ``n >= 0`` episodes that ended in the last batch;
            with ``collect.deterministic_share``, of those without noise.

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
        self._acting = policy if explore is None else explore
        workers, pace = 0, 0.0
        if isinstance(collect, OffPolicyCollectConfig):
            workers, pace = collect.workers, collect.pace(run.config.env)
            if collect.deterministic_share:
                self._acting = DeterministicEpisodes(self._acting, collect.deterministic_share)
        copies = run.config.env.num_envs  # each takes the same number of steps
        steps = collect.frames_per_batch // run.config.env.steps_per_action
        self._frames_per_batch = -(-steps // copies) * copies
        self._collect, self._workers, self._updates_per_frame = collect, workers, pace
        self._averages = Averages(task.cost_suffixes)
        self._episodes = EpisodeStatistics(task.limits, task.cost_suffixes)
        self._noiseless = EpisodeStatistics(task.limits, task.cost_suffixes, "deterministic_episode")
        self._since, self._owed = run.frames, 0.0
        self._largest = 0.0  # reward or cost of a step
        self.episode_costs = torch.empty(0, task.num_costs)
        # A deterministic policy has no sampled actions.
        sampled = run.config.run.eval_sampled and isinstance(policy, ProbabilisticTensorDictSequential)
        self._evaluated = {"eval": True} | ({"eval_sampled": False} if sampled else {})
        self._env: Any = None
        self._collector: Any = None  # of this process
        self._reason = "worker processes collect" if workers else None  # why environments cannot be saved
        self._restored: Mapping[str, Any] | None = None
        run.add("loop", self)

    def state_dict(self) -> dict[str, Any]:
        """Return the updates owed, the averages of the next row, and the state of the environments."""
        return {
            "owed": self._owed,
            "largest": self._largest,
            "averages": self._averages.state_dict(),
            "episodes": self._episodes.state_dict(),
            "noiseless": self._noiseless.state_dict(),
            "collection": self._collection(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; :meth:`collect` restores the environments."""
        self._owed, self._largest = state["owed"], state["largest"]
        self._averages.load_state_dict(state["averages"])
        self._episodes.load_state_dict(state["episodes"])
        self._noiseless.load_state_dict(state["noiseless"])
        self._restored = state["collection"]

    def _collection(self) -> dict[str, Any] | None:
        """Return the state of the environments and the step that comes next; None before collection."""
        if self._reason is not None:
            return {"reason": self._reason}
        if self._collector is None:
            return None
        try:
            env = self._env.base_env.get_state()
        except StateError as error:
            return {"reason": str(error)}
        return {"env": env, "next": self._collector._carrier.to_dict()}

    def _state_error(self) -> str | None:
        env = self._env.base_env
        if not isinstance(env, ConstrainedEnv):
            return f"{type(env).__name__} cannot save the state of its environments"
        return env.state_error()

    def _continue_episodes(self) -> None:
        """Bring new environments to the state of the checkpoint, or tell why they start new episodes."""
        saved, self._restored = self._restored, None
        if saved is None:  # the run is new, or it was stopped before the first batch
            return
        reason = self._reason or saved.get("reason")
        if reason is None:
            try:
                self._env.base_env.set_state(saved["env"])
            except StateError as error:
                reason = str(error)
        if reason is not None:
            print(f"new episodes start at frame {self.run.frames}: {reason}")
            return
        carrier = self._collector._carrier
        self._collector._carrier = TensorDict(saved["next"], carrier.batch_size, carrier.device)
        self.run.restore_random_state()

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
        if run.finished:  # it was stopped during the random steps
            return
        seed = run.config.run.seed + run.frames
        with run.watch("collecting"):
            if self._workers:
                with workers_ignore_interrupt():
                    collector: Any = OverlappedCollector(
                        task.worker_env(self._workers),
                        self._acting,
                        frames_per_batch=self._frames_per_batch,
                        num_workers=self._workers,
                        seed=seed,
                        stopping=lambda: run.finished,
                    )
            else:
                self._env = task.training_env(seed)
                self._reason = self._state_error()
                self._collector = collector = make_collector(
                    lambda: self._env,
                    self._acting,
                    frames_per_batch=self._frames_per_batch,
                    policy_device=task.device,
                    env_device=task.env_device,
                )
        run.on_exit(collector.shutdown)
        self._eval_env = task.evaluation_env()
        self._continue_episodes()
        for batch in run.watch.each("collecting", collector):
            self._take(batch := batch.to(task.env_device))
            yield batch
            if run.finished:
                break
            collector.update_policy_weights_()
        else:
            print("a worker did not deliver its steps, which are given up")

    def _take(self, steps: TensorDictBase) -> None:
        self._since = self.run.frames
        self.run.advance(steps.numel() * self.run.config.env.steps_per_action)
        require_finite(steps, f"frame {self.run.frames}")
        signals = torch.cat([steps[keys.REWARD], steps[keys.COST]], -1)
        self._largest = max(self._largest, float(signals.abs().max()))
        ended = self._episodes.add(steps)
        constrained = constrained_steps(steps)
        measured = ended if constrained is steps else self._noiseless.add(constrained)
        self.episode_costs = measured[:, 1:-1]
        self._record_episodes(steps, ended)

    def _record_episodes(self, steps: TensorDictBase, ended: torch.Tensor) -> None:
        """Write a row of ``episodes.csv`` for each episode that has just ended, in order of time."""
        done = steps[keys.DONE].squeeze(-1).reshape(-1, steps.shape[-1]).cpu()
        copies, times = done.nonzero(as_tuple=True)
        # All copies have taken the step in which an episode ends.
        frames = self._since + (times + 1) * len(done) * self.run.config.env.steps_per_action
        costs = [f"cost{suffix}" for suffix in self.task.cost_suffixes]
        for row in times.argsort(stable=True).tolist():
            reward, *cost, length = ended[row].tolist()
            episode = {"frames": int(frames[row]), "copy": int(copies[row]), "reward": reward}
            self.run.log_episode({**episode, **dict(zip(costs, cost, strict=True)), "length": length})

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
            FloatingPointError: if a metric is not finite, or if a critic diverges.
        """
        run, settings = self.run, self.run.config.run
        due = run.due(settings.log_interval, self._since)
        if due or run.finished:
            learned = self._checked_averages()
            row = self._episodes.peek() | learned
            if isinstance(self._acting, DeterministicEpisodes):
                row |= self._noiseless.peek()
            if due:
                self._averages.pop()
                self._episodes.pop()
                self._noiseless.pop()
            evaluates = run.due(settings.eval_interval, run.row_frames)
            if settings.eval_interval and (evaluates or run.finished):
                row |= self._evaluate()
            run.log(row, shown=("episode_reward", "episode_cost", *shown), extra=not due)
        if run.due(settings.checkpoint_interval, self._since):
            self._checked_averages()  # a checkpoint of a critic that has diverged is of no use
            run.save()

    def _checked_averages(self) -> dict[str, float]:
        averages, where = self._averages.peek(), f"frame {self.run.frames}"
        require_finite(averages, where)
        require_bounded_losses(averages, self._largest, where)
        return averages

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the policy, without a trace in the random streams of training."""
        run, settings = self.run, self.run.config.run
        streams, before = GlobalRNGState(), GlobalRNGState().state_dict()
        row: dict[str, float] = {}
        with run.watch("evaluating"):
            for prefix, deterministic in self._evaluated.items():
                ended = evaluate(
                    self.policy,
                    self._eval_env,
                    settings.eval_episodes,
                    seed=settings.seed,
                    deterministic=deterministic,
                )
                row |= episode_summary(ended, self.task.limits, prefix, self.task.cost_suffixes)
        streams.load_state_dict(before)
        return row
