"""Options of every recipe: the environment, the run and the cost limit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from safe_components.envs import default_frame_skip
from safe_components.training.options.budget import BudgetConfig
from safe_components.training.options.device import usable_device
from safe_components.training.options.ranges import (
    Copies,
    Count,
    LimitRange,
    Positive,
    Real,
    Repeats,
    Seed,
    Steps,
    Whole,
)

__all__ = ["EnvConfig", "RecipeConfig", "RunConfig", "cost_suffixes"]


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The environment: the arguments of ``safe_components.envs.make_env``, and what is shown of the limit."""

    id: str = "SafetyPointCircle1-v0"
    """a Safety-Gymnasium id, a Gymnasium id whose info holds ``cost``, ``PointCircle``, or a function or
    class that makes an environment, as package.module:name"""
    num_envs: Copies = 10
    """number of environments that are stepped together, over all processes"""
    num_workers: Copies = 1
    """number of processes that the environments are spread over"""
    frame_skip: Repeats | None = None
    """environment steps per action, whose rewards and costs are summed; None takes 8 for the Point, Car and
    Racecar tasks of Safety-Gymnasium, and 1 for all others"""
    max_episode_steps: Steps | None = None
    """environment steps in an episode; None keeps the environment's own limit"""
    saute: Real | None = None
    """Sauté: reward of a step once cost_limit is used up, whose rest the policy sees; None turns it off"""
    limits: LimitRange = ()
    """range of limits: each episode draws its own, which the policy sees; empty holds all to cost_limit"""
    cost_keys: tuple[str, ...] = ("cost",)
    """entries of the environment's info that hold the cost signals; ignored with cost_limit none"""
    step_timeout: Positive | None = 120.0
    """seconds after which a step or reset of an environment counts as hanging and ends the run; None waits"""

    @property
    def steps_per_action(self) -> int:
        """``frame_skip``, or what None stands for in this task; see `default_frame_skip`."""
        return default_frame_skip(self.id) if self.frame_skip is None else self.frame_skip

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``make_env``."""
        own = {name: value for name, value in vars(self).items() if name not in ("saute", "limits")}
        return own | {"frame_skip": self.steps_per_action}

    def validate(self, config: RecipeConfig) -> None:
        """Raise ValueError unless the recipe can follow the limits, and Sauté has a budget."""
        if self.limits and self.saute is not None:
            raise ValueError(f"env.limits is {self.limits} and env.saute is {self.saute}: choose one of them")
        if self.limits and not config.follows_limits:
            raise ValueError(
                f"env.limits is {self.limits}, but {config.recipe} holds all episodes to cost_limit: "
                "leave it empty, or take the recipe ppo_lag"
            )
        if self.saute is not None and not all(config.budget.cost_limit or (0.0,)):
            raise ValueError(
                f"env.saute needs a positive cost_limit, but cost_limit is {config.budget.cost_limit or None}"
            )

    @property
    def file_name(self) -> str:
        """The id as part of a file name, without the slashes and colons that Gymnasium allows.

        Example:
            >>> EnvConfig(id="my_package:My/Task-v0").file_name
            'my_package-My-Task-v0'
        """
        return re.sub(r"[^\w.-]+", "-", self.id)


def cost_suffixes(cost_keys: Sequence[str], num_costs: int) -> list[str]:
    """Return what names each cost signal at the end of a metric, such as ``episode_cost``.

    A single cost needs no name. Several costs keep the names of ``env.cost_keys``, without a leading
    ``cost_``. If one key stands for several costs, these are numbered.

    Args:
        cost_keys: entries of the environment's info that hold the costs.
        num_costs: m, the number of costs.

    Example:
        >>> cost_suffixes(("cost_hazards", "speed"), 2), cost_suffixes(("cost",), 1)
        (['_hazards', '_speed'], [''])
        >>> cost_suffixes(("cost",), 3), cost_suffixes((), 0)
        (['', '_1', '_2'], [])
    """
    if not num_costs:
        return []
    names = ["_" + re.sub(r"\W+", "_", key.removeprefix("cost_")) for key in cost_keys]
    if num_costs > 1 and len(set(names)) == num_costs:
        return names
    return ["", *(f"_{index}" for index in range(1, num_costs))]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The length of a run, its device, and where its results go."""

    seed: Seed = 0
    """seed of the environments, the networks and the samples"""
    total_frames: Count = 100_000
    """environment steps of the whole run"""
    device: str = "cpu"
    """device of the networks and the replay buffer: cpu, cuda, cuda:1, ..."""
    threads: Repeats = 1
    """CPU threads of PyTorch; the networks are small, so a second run makes better use of a core"""
    run_dir: Path | None = None
    """directory of the results; None makes runs/<recipe>-<env>-seed<seed>-<time>"""
    settings: str | None = None
    """settings of a task: a YAML file, or the name of one that comes with the recipes; flags override them"""
    config: Path | None = None
    """configuration to start from, such as the config.yaml of another run; flags override it"""
    warm_start: Path | None = None
    """directory of another run whose policy, and scaling of observations, this run starts from"""
    resume: Path | None = None
    """directory of a run to continue; its configuration is used"""
    log_interval: Count = 10_000
    """frames between rows of metrics.csv; a row in which no episode ends has no reward and cost"""
    eval_interval: Whole = 20_000
    """frames between evaluations, each at the next row of metrics; 0 turns evaluation off"""
    eval_episodes: Copies = 10
    """episodes per evaluation, of each kind of action"""
    eval_sampled: bool = True
    """evaluate sampled actions, too, in addition to the mean action"""
    checkpoint_interval: Count = 25_000
    """frames between checkpoints, and so the most that a killed run loses"""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """loggers that receive the metrics in addition to metrics.csv"""
    progress: bool = True
    """show a progress bar"""
    traceback: bool = False
    """show the traceback of an error instead of one line"""

    def validate(self, config: RecipeConfig) -> None:
        """Raise ValueError unless the device exists."""
        usable_device(self.device)


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """Options of every recipe; each recipe adds groups of its own.

    Attributes:
        recipe: name of the recipe, which names its runs and its section in settings files.
        follows_limits: whether the recipe holds each episode to a limit of its own.
    """

    recipe: ClassVar[str] = "recipe"
    follows_limits: ClassVar[bool] = True
    env: EnvConfig = EnvConfig()
    run: tyro.conf.OmitArgPrefixes[RunConfig] = RunConfig()
    budget: BudgetConfig = BudgetConfig()
