"""The loop that off-policy actor-critic recipes with a multiplier share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn

from plumbing.critics import ConstrainedCritics
from plumbing.multiplier import LagrangianConfig
from plumbing.off_policy import OffPolicyConfig, make_buffer, n_step_transitions, train_off_policy
from plumbing.task import Task
from safe_components.lagrangian import GradientMultiplier, PIDMultiplier
from safe_components.training import Run

__all__ = ["OffPolicyLagrangianConfig", "train_lagrangian"]


@dataclasses.dataclass(frozen=True)
class OffPolicyLagrangianConfig(LagrangianConfig, OffPolicyConfig):
    """What off-policy recipes with a multiplier share."""


def train_lagrangian(
    config: OffPolicyLagrangianConfig,
    name: str,
    task: Task,
    policy: nn.Module,
    critics: ConstrainedCritics,
    multiplier: GradientMultiplier | PIDMultiplier,
    *,
    improve: Callable[[TensorDictBase, int], dict[str, torch.Tensor]],
    components: Mapping[str, Any],
    explore: nn.Module | None = None,
    shown: tuple[str, ...] = ("lambda",),
) -> None:
    """Collect, learn the critics, improve the policy; the multiplier follows the episodes that end.

    Args:
        config: of the run.
        name: of the recipe.
        task: its environments.
        policy: evaluated, and collected with unless ``explore`` is given.
        critics: one step of theirs comes first in each update.
        multiplier: moved after each batch of frames by the mean cost of the episodes that ended in it.
        improve: ``(batch, updates so far, this one included)``, the policy's part of an update; returns its
            metrics.
        components: what a checkpoint holds besides policy, critics, multiplier and buffer.
        explore: the policy with noise, for one that has none of its own.
        shown: metrics on the progress bar besides reward and cost.
    """
    buffer = make_buffer(config)
    transitions_of = n_step_transitions(config)

    def store(steps: TensorDictBase) -> None:
        if len(transitions := transitions_of(steps)):
            buffer.extend(transitions)

    def update() -> dict[str, torch.Tensor]:
        batch = buffer.sample()
        values = critics.update(batch)
        run.count_update()
        values |= {"lambda": multiplier.lam, "lambda_capped": multiplier.clipped}
        return values | improve(batch, run.updates)

    def collected(episode_costs: torch.Tensor) -> None:
        if len(episode_costs):
            multiplier.update(episode_costs.mean(0))

    everything = {
        "policy": policy,
        "norm": task.norm,
        "multiplier": multiplier,
        "buffer": buffer,
        **critics.components,
        **components,
    }
    with Run(config, name, **everything) as run:
        train_off_policy(
            run,
            task,
            policy,
            store=store,
            warm_up=lambda: critics.update(buffer.sample()),
            update=update,
            collected=collected,
            explore=explore,
            shown=shown,
        )
