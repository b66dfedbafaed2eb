"""Evaluate the policy a run has saved, in environments of its own.

    python recipes/evaluate.py runs/cvpo-PointCircle-seed0-...
    python recipes/evaluate.py RUN_DIR --episodes 100 --seed 7 --stochastic
    python recipes/evaluate.py RUN_DIR --video

The policy of the newest checkpoint, whichever recipe trained it, plays whole episodes with its mean
action, or with sampled ones. Reward, costs, length and the share of episodes over a limit are printed; each
episode is a row of ``RUN_DIR/evaluation.csv``. With the run's own seed and number of episodes these are
the episodes of ``eval_reward`` and ``eval_cost`` in its ``metrics.csv``.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch
import tyro
import yaml
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import nn
from torchrl.checkpoint import Checkpoint, CheckpointRotation
from torchrl.envs import ExplorationType, set_exploration_type

from plumbing import Task
from plumbing.video import record_video
from safe_components.training import (
    RunConfig,
    evaluate,
    explained_errors,
    load_config,
    validate_run_config,
)

_MOST_COPIES = 50  # environments stepped together; beyond that, several episodes in each


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluate a saved policy."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """directory of a run"""
    episodes: int = 20
    """how many; beyond 50, rounded up to a multiple of 50"""
    seed: int = 0
    """of the environments and of sampled actions"""
    stochastic: bool = False
    """sample actions, as in training; otherwise their mean is taken"""
    video: bool = False
    """write RUN_DIR/video.mp4 (or .gif, without imageio-ffmpeg) of the first episodes"""
    video_episodes: int = 3
    """episodes in it"""
    device: str = "cpu"
    """of the policy"""
    traceback: bool = False
    """show where an error came from instead of one line"""


class Sampled(nn.Module):
    """``policy`` with its actions sampled, whatever the exploration type around it."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act."""
        with set_exploration_type(ExplorationType.RANDOM):
            return self.policy(tensordict)


def find_recipe(run_dir: Path) -> ModuleType:
    """The recipe that made a run: the module beside this file that ``config.yaml`` names.

    Raises:
        FileNotFoundError: if there is no ``config.yaml``.
        ValueError: if it names nothing that has ``Config`` and ``make_policy``.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} is not a run directory: it holds no {path.name}")
    name = str(yaml.safe_load(path.read_text()).get("recipe"))
    # A file is looked for, not a name in a table, so that a recipe of your own put there works too.
    if name.isidentifier() and Path(__file__).with_name(f"{name}.py").is_file():
        recipe = importlib.import_module(name)
        if hasattr(recipe, "Config") and hasattr(recipe, "make_policy"):
            return recipe
    raise ValueError(
        f"{path} names the recipe {name!r}, but {Path(__file__).parent} holds no {name}.py "
        "with Config and make_policy(config, task)"
    )


def load_policy(run_dir: Path, recipe: ModuleType, config: RunConfig, task: Task) -> tuple[nn.Module, Path]:
    """The policy of the newest checkpoint, and that checkpoint; ``task.norm`` is restored, too.

    Raises:
        FileNotFoundError: if there is no checkpoint yet.
        ValueError: if it lacks the policy or the scaling of its observations.
    """
    path = CheckpointRotation(run_dir / "checkpoint", keep_last=1).latest()
    if path is None:
        raise FileNotFoundError(
            f"{run_dir} holds no checkpoint yet: one is written every {config.checkpoint_interval} frames, "
            "and when the run ends or is stopped with Ctrl-C"
        )
    policy = recipe.make_policy(config, task)
    parts = {"policy": policy, "norm": task.norm}
    if missing := [name for name in parts if name not in Checkpoint.manifest(path)["components"]]:
        raise ValueError(f"{path} lacks {' and '.join(missing)}: give Run(..., policy=..., norm=...) both")
    Checkpoint(**parts).load(path, map_location=task.device)
    return policy, path


def summary(ended: Mapping[str, torch.Tensor], limits: Sequence[float]) -> str:
    """Mean, standard deviation and range over episodes, a line for each quantity.

    Args:
        ended: ``reward`` ``[n]``, ``cost`` ``[n, m]`` and ``length`` ``[n]``, as ``evaluate`` returns them.
        limits: of the episodic cost, m numbers.
    """
    rows = {"reward": ended["reward"]}
    for index, limit in enumerate(limits):
        rows[f"{_cost_name(index)} (limit {limit:g})"] = ended["cost"][:, index]
    rows["length"] = ended["length"]
    title = f"over {len(ended['reward'])} episodes"
    lines = [f"{title:<24}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}"]
    for name, value in rows.items():
        numbers = (value.mean(), value.std(correction=0), value.min(), value.max())
        lines.append(f"{name:<24}" + "".join(f"{float(number):10.2f}" for number in numbers))
    return "\n".join([*lines, f"{'over a limit':<24}{float(_over(ended, limits).mean()):>10.0%}"])


def write_csv(path: Path, ended: Mapping[str, torch.Tensor], limits: Sequence[float]) -> None:
    """A row for each episode: ``episode, reward, cost, cost_1, ..., length, over_limit`` (0 or 1)."""
    names = ["episode", "reward", *(_cost_name(i) for i in range(len(limits))), "length", "over_limit"]
    columns = [
        ended["reward"][:, None],
        ended["cost"],
        ended["length"][:, None],
        _over(ended, limits)[:, None],
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(names)
        for episode, row in enumerate(torch.cat(columns, -1).tolist(), start=1):
            out.writerow([episode, *(f"{number:.8g}" for number in row)])


def _cost_name(index: int) -> str:
    return f"cost_{index}" if index else "cost"


def _over(ended: Mapping[str, torch.Tensor], limits: Sequence[float]) -> torch.Tensor:
    return (ended["cost"] > torch.tensor(limits, dtype=torch.float64)).any(-1).double()


def main(config: Config) -> None:
    """Evaluate."""
    for name in ("episodes", "video_episodes"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, must be at least 1")
    recipe = find_recipe(config.run_dir)
    trained = load_config(recipe.Config, config.run_dir)
    copies = min(config.episodes, _MOST_COPIES)
    settings = dataclasses.replace(trained, eval_episodes=copies, seed=config.seed, device=config.device)
    validate_run_config(settings)
    task = Task(settings)
    policy, checkpoint = load_policy(config.run_dir, recipe, settings, task)
    if config.stochastic and not isinstance(policy, ProbabilisticTensorDictSequential):
        raise ValueError(f"a policy of {recipe.__name__} has no noise of its own: leave out --stochastic")
    policy = Sampled(policy) if config.stochastic else policy

    ended = evaluate(policy, task.evaluation_env(), config.episodes, seed=config.seed)
    kind = "sampled actions" if config.stochastic else "mean action"
    print(f"{checkpoint}: {recipe.__name__} on {trained.env.id}, {kind}, seed {config.seed}")
    print(summary(ended, trained.cost_limit))
    path = config.run_dir / "evaluation.csv"
    write_csv(path, ended, trained.cost_limit)
    print(path)
    if config.video:
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            print(
                record_video(
                    policy,
                    task.norm.clone().cpu(),
                    trained.env,
                    config.run_dir / "video",
                    episodes=config.video_episodes,
                    seed=config.seed,
                    device=task.device,
                )
            )


def run(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate; an error with an explanation is one line."""
    config = tyro.cli(Config, args=arguments)
    with explained_errors(config.traceback):
        main(config)


if __name__ == "__main__":
    run()
