"""Collect, store and update: the loop that off-policy recipes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.data import TensorDictReplayBuffer

from plumbing.report import report
from plumbing.storage import GatherStorage
from plumbing.task import Task
from safe_components import keys
from safe_components.collectors import OverlappedCollector, make_collector
from safe_components.critics import n_step_transform
from safe_components.training import (
    Averages,
    EpisodeStatistics,
    Run,
    RunConfig,
    require_finite,
    workers_ignore_interrupt,
)

__all__ = ["OffPolicyConfig", "make_buffer", "n_step_transitions", "train_off_policy"]

STORED = (
    keys.OBSERVATION,
    keys.ACTION,
    keys.NEXT_OBSERVATION,
    keys.REWARD,
    keys.COST,
    keys.DONE,
    keys.TERMINATED,
    keys.TRUNCATED,
)
READ = (
    keys.OBSERVATION,
    keys.ACTION,
    keys.NEXT_OBSERVATION,
    keys.REWARD,
    keys.COST,
    keys.TERMINATED,
    "steps_to_next_obs",
)


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(RunConfig):
    """What off-policy recipes share: the networks' shape, the critics, the buffer and the pace."""

    gamma: float = 0.99
    """discount of reward and cost"""
    n_step: int = 3
    """steps of the temporal-difference targets"""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """hidden layers of the policy and the critics"""
    layer_norm: bool = True
    """normalise the critics' first hidden layer"""
    cost_critics: int = 1
    """ensemble size"""
    critic_lr: float = 1e-3
    """Adam's step size for the critics"""
    policy_lr: float = 1e-3
    """Adam's step size for the policy"""
    critic_polyak: float = 0.98
    """share the target critics keep at each update"""
    buffer_size: int = 300_000
    """frames whose transitions are kept; allocated at once and saved with each checkpoint"""
    batch_size: int = 256
    """states per update"""
    frames_per_batch: int = 200
    """frames collected between updates"""
    updates_per_frame: float = 0.12
    """updates per collected frame"""
    collect_workers: int = 0
    """processes that collect the next batch during the updates; 0 collects between them, in this process"""
    warmup_frames: int = 5_000
    """first frames, of random actions, at least n_step + 1 steps; their statistics scale the observations"""
    critic_warmup: int = 500
    """updates of the critics alone, so that the policy starts with an idea of the cost"""


def make_buffer(config: OffPolicyConfig, frames: int | None = None) -> TensorDictReplayBuffer:
    """A uniform replay buffer of the last ``frames`` frames (``None``: ``config.buffer_size``).

    Raises:
        ValueError: if it cannot hold a transition, nothing would be sampled from it, or the environments that
            fill it cannot be spread over ``config.collect_workers`` processes.
    """
    _check_workers(config)
    frames = config.buffer_size if frames is None else frames
    for name, value in (("buffer", frames // config.env.frame_skip), ("batch_size", config.batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value} transitions, must be at least 1")
    storage = GatherStorage(frames // config.env.frame_skip, device=torch.device(config.device))
    return TensorDictReplayBuffer(storage=storage, batch_size=config.batch_size)


def n_step_transitions(config: OffPolicyConfig) -> Callable[[TensorDictBase], TensorDictBase]:
    """A function from steps ``[N, T]`` to transitions ``[n]`` over ``config.n_step`` of them.

    The last ``n_step`` steps of each environment wait for the next call. Until it has seen more, ``n`` is 0
    and nothing can be stored: with many environments a batch may be a single step of each. Transitions hold
    what critics and policies read, and nothing else: every entry is gathered with every batch.
    """
    transform = n_step_transform(config.n_step, config.gamma)

    def transitions_of(steps: TensorDictBase) -> TensorDictBase:
        complete = transform.inv(steps)
        if complete is None:  # TorchRL's word for nothing yet
            complete = steps[:, :0].copy()
            complete["steps_to_next_obs"] = torch.zeros(complete.shape, dtype=torch.long, device=steps.device)
        return complete.select(*READ).flatten(0, 1)

    return transitions_of


def train_off_policy(
    run: Run,
    task: Task,
    policy: nn.Module,
    *,
    store: Callable[[TensorDictBase], None],
    warm_up: Callable[[], object],
    update: Callable[[], dict[str, torch.Tensor]],
    collected: Callable[[torch.Tensor], None] | None = None,
    explore: nn.Module | None = None,
    shown: tuple[str, ...] = (),
) -> None:
    """Train until ``run`` is finished, reporting as its configuration asks.

    Random actions come first: they scale the observations and start the buffer, and ``warm_up`` is called
    ``critic_warmup`` times. Then collecting and updating alternate, ``updates_per_frame`` updates for
    every frame; with ``collect_workers`` at the same time, the policy that collects being one batch older. A
    resumed run draws new episodes: the environments' own states are not saved.

    Args:
        run: an open run with an `OffPolicyConfig`.
        task: its environments.
        policy: evaluated, and collected with unless ``explore`` is given.
        store: takes transitions ``[N, T]`` as they are collected, observations scaled.
        warm_up: one step of the critics alone.
        update: one update; returns its metrics, scalars or vectors over the costs.
        collected: called after each batch of frames with the undiscounted costs ``[n, m]`` of the ``n >= 0``
            episodes that ended in it.
        explore: collects in place of ``policy``, for a policy without noise of its own.
        shown: metrics on the progress bar besides reward and cost.
    """
    config = run.config
    averages, episodes = Averages(), EpisodeStatistics(config.cost_limit)

    def take(steps: TensorDictBase, *, last: bool = False) -> torch.Tensor:
        run.advance(steps.numel() * config.env.frame_skip)
        require_finite(steps, run.frames)
        costs = episodes.add(steps)
        if last:  # of these environments: n-step windows must not run on into another episode
            for flag in (keys.DONE, keys.TRUNCATED):
                steps[flag][..., -1, :] = True
        store(steps.select(*STORED))
        return costs

    acting = policy if explore is None else explore
    # One step more than wait for the next batch, so that the critics' first updates find a transition.
    shortest = (config.n_step + 1) * config.env.num_envs * config.env.frame_skip
    frames_per_batch = config.frames_per_batch // config.env.frame_skip
    with workers_ignore_interrupt():
        if run.frames == 0:
            with run.watch("collecting"):
                random = task.warm_up(max(config.warmup_frames, shortest), seed=config.seed)
            take(random, last=True)
            for _ in range(config.critic_warmup):
                warm_up()
        seed = config.seed + run.frames
        with run.watch("collecting"):
            if config.collect_workers:
                collector = OverlappedCollector(
                    task.worker_env(config.collect_workers),
                    acting,
                    frames_per_batch=frames_per_batch,
                    num_workers=config.collect_workers,
                    seed=seed,
                )
            else:
                collector = make_collector(
                    lambda: task.training_env(seed),
                    acting,
                    frames_per_batch=frames_per_batch,
                    policy_device=task.device,
                    env_device=task.env_device,
                )
    eval_env = task.evaluation_env()
    updates_owed = 0.0
    try:
        for batch in run.watch.each("collecting", collector):
            since = run.frames
            costs = take(batch.to(task.env_device))
            if collected is not None:
                collected(costs)
            updates_owed += (run.frames - since) * config.updates_per_frame
            while updates_owed >= 1:
                averages.add(update())
                updates_owed -= 1
            collector.update_policy_weights_()
            report(run, since, averages, episodes, policy, eval_env, shown)
            if run.finished:
                break
    finally:
        collector.shutdown()


def _check_workers(config: OffPolicyConfig) -> None:
    workers, copies = config.collect_workers, config.env.num_envs
    if workers < 0 or (workers and copies % workers):
        raise ValueError(f"collect_workers is {workers}, must be 0 or divide env.num_envs {copies}")
    if workers and config.env.num_workers > 1:
        raise ValueError(
            f"collect_workers is {workers} and env.num_workers {config.env.num_workers}: both spread the "
            "environments over processes; leave env.num_workers at 1"
        )
