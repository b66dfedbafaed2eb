"""Evaluation of the saved policy of a run, in new environments.

    python recipes/evaluate.py runs/cvpo-PointCircle-seed0-...
    python recipes/evaluate.py RUN_DIR --episodes 100 --seed 7 --stochastic
    python recipes/evaluate.py RUN_DIR --video
    python recipes/evaluate.py RUN_DIR --recipe my_cvpo.py    # trained by your own recipe

The policy of the newest checkpoint acts in whole episodes with its mean action or with sampled actions. Any
recipe may have trained it. The program prints reward, costs, length and the share of episodes over a limit.
It writes each episode as a row of ``RUN_DIR/evaluation.csv``. With the seed and the number of episodes of the
run, these are the episodes of ``eval_reward`` and ``eval_cost`` in its ``metrics.csv``.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch
import tyro
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import nn
from torchrl.checkpoint import Checkpoint, CheckpointRotation
from torchrl.envs import ExplorationType, set_exploration_type

from safe_components.training import (
    RecipeConfig,
    Task,
    evaluate,
    explained_errors,
    load_config,
    options,
    record_video,
    with_run,
)
from safe_components.training.config import read_run, validate
from safe_components.training.recipes import load_recipe, recipe_file

_MOST_COPIES = 50  # environments that are stepped together; for more episodes, each runs several


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluation of a saved policy."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """directory of the run"""
    recipe: Path | None = None
    """file of the recipe that trained the policy; None takes the recipe of this package that the run names"""
    episodes: options.Count = 20
    """number of episodes; a number above 50 is rounded up to a multiple of 50"""
    seed: options.Whole = 0
    """seed of the environments and of the sampled actions"""
    stochastic: bool = False
    """sample actions, as in training, instead of taking the mean action"""
    video: bool = False
    """write a video of episodes to RUN_DIR/video.mp4 (video.gif without imageio-ffmpeg)"""
    video_episodes: options.Count = 3
    """number of episodes in the video"""
    device: str = "cpu"
    """device of the policy"""
    traceback: bool = False
    """show the traceback of an error instead of one line"""


class Sampled(nn.Module):
    """A policy that samples its actions under any exploration type."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sample an action."""
        with set_exploration_type(ExplorationType.RANDOM):
            return self.policy(tensordict)


def find_recipe(run_dir: Path, file: Path | None = None) -> ModuleType:
    """Import the recipe of a run.

    Args:
        run_dir: directory of the run.
        file: file of the recipe. None takes the recipe of this package that ``config.yaml`` names, because a
            run directory holds no code.

    Raises:
        FileNotFoundError: if ``config.yaml`` or the file does not exist.
        ValueError: if the run is of an older layout, or if the recipe is missing or has no ``make_policy``.
    """
    name = str(read_run(run_dir).get("recipe"))
    try:
        file = recipe_file(name) if file is None else file
    except FileNotFoundError as error:
        raise ValueError(f"{run_dir}: {error}; name the recipe's file with --recipe FILE") from None
    recipe = load_recipe(file)
    if not hasattr(recipe, "make_policy"):
        raise ValueError(f"{file} has no make_policy(config, task), which evaluation needs")
    return recipe


def load_policy(
    run_dir: Path, recipe: ModuleType, config: RecipeConfig, task: Task
) -> tuple[nn.Module, Path]:
    """Return the policy of the newest checkpoint and the path of the checkpoint; restore ``task.norm``.

    Raises:
        FileNotFoundError: if there is no checkpoint yet.
        ValueError: if the checkpoint lacks the policy or the scaling of its observations.
    """
    path = CheckpointRotation(run_dir / "checkpoint", keep_last=1).latest()
    if path is None:
        raise FileNotFoundError(
            f"{run_dir} holds no checkpoint yet: one is written every {config.run.checkpoint_interval} "
            "frames, and when the run ends or is stopped with Ctrl-C"
        )
    policy = recipe.make_policy(config, task)
    parts = {"policy": policy, "norm": task.norm}
    if missing := [name for name in parts if name not in Checkpoint.manifest(path)["components"]]:
        raise ValueError(f"{path} lacks {' and '.join(missing)}: pass both to Run(..., policy=..., norm=...)")
    Checkpoint(**parts).load(path, map_location=task.device)
    return policy, path


def summary(ended: Mapping[str, torch.Tensor], limits: Sequence[float]) -> str:
    """Return the mean, the standard deviation and the range over episodes, with one line per quantity.

    Args:
        ended: ``reward`` ``[n]``, ``cost`` ``[n, m]`` and ``length`` ``[n]``, as ``evaluate`` returns them.
        limits: limits on the cost of an episode, m numbers.
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
    """Write one row per episode: ``episode, reward, cost, cost_1, ..., length, over_limit`` (0 or 1)."""
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
    """Evaluate the policy, print a summary, and write the files."""
    recipe = find_recipe(config.run_dir, config.recipe)
    trained = load_config(recipe.Config, config.run_dir)
    copies = min(config.episodes, _MOST_COPIES)
    settings = with_run(trained, eval_episodes=copies, seed=config.seed, device=config.device)
    validate(settings)
    task = Task(settings)
    policy, checkpoint = load_policy(config.run_dir, recipe, settings, task)
    if config.stochastic and not isinstance(policy, ProbabilisticTensorDictSequential):
        raise ValueError(f"the policy of {trained.recipe} is deterministic: omit --stochastic")
    policy = Sampled(policy) if config.stochastic else policy

    ended = evaluate(policy, task.evaluation_env(), config.episodes, seed=config.seed)
    kind = "sampled actions" if config.stochastic else "mean action"
    print(f"{checkpoint}: {trained.recipe} on {trained.env.id}, {kind}, seed {config.seed}")
    print(summary(ended, trained.budget.cost_limit))
    path = config.run_dir / "evaluation.csv"
    write_csv(path, ended, trained.budget.cost_limit)
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
    """Parse the command line and evaluate; end with one line for errors of the user."""
    config = tyro.cli(Config, args=arguments)
    with explained_errors(config.traceback):
        validate(config)
        main(config)


if __name__ == "__main__":
    run()
