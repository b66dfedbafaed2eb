"""Rows of metrics, evaluations and checkpoints when they are due."""

from __future__ import annotations

from torch import nn
from torchrl.envs import EnvBase

from safe_components.training import (
    Averages,
    EpisodeStatistics,
    Run,
    episode_summary,
    evaluate,
    require_finite,
)

__all__ = ["report"]


def report(
    run: Run,
    since: int,
    averages: Averages,
    episodes: EpisodeStatistics,
    policy: nn.Module,
    eval_env: EnvBase,
    shown: tuple[str, ...] = (),
) -> None:
    """Log, evaluate and save whatever fell due after ``since`` frames; everything at the end of a run.

    Args:
        run: whose intervals count.
        since: frames when this was last called.
        averages: of the updates' metrics; emptied into the row.
        episodes: of training; likewise.
        policy: evaluated with its mode.
        eval_env: to evaluate it in.
        shown: further metrics on the progress bar.

    Raises:
        FloatingPointError: if a metric is not finite.
    """
    config = run.config
    if run.due(config.log_interval, since) or run.finished:
        learned = averages.pop()
        require_finite(learned, run.frames)
        row = episodes.pop() | learned
        if config.eval_interval and (run.due(config.eval_interval, since) or run.finished):
            with run.watch("evaluating"):
                ended = evaluate(policy, eval_env, config.eval_episodes, seed=config.seed)
            row |= episode_summary(ended["reward"], ended["cost"], config.cost_limit, "eval")
        run.log(row, shown=("episode_reward", "episode_cost", *shown))
    if run.due(config.checkpoint_interval, since):
        run.save()
