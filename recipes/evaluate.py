"""Evaluation of the saved policy of a run, in new environments.

    python recipes/evaluate.py runs/cvpo-PointCircle-seed0-...
    python recipes/evaluate.py RUN_DIR --episodes 100 --seed 7 --actions sampled
    python recipes/evaluate.py RUN_DIR --video
    python recipes/evaluate.py RUN_DIR --cost-limit 10        # another limit, for a policy that sees it
    python recipes/evaluate.py RUN_DIR --recipe my_cvpo.py    # whose policy has a builder of its own

The policy of the newest checkpoint acts in whole episodes, first with its mean action and then with sampled
actions. Any recipe may have trained it. The program prints reward, costs, length and the share of episodes
over a limit. It appends each episode as a row to ``RUN_DIR/evaluation.csv``, or with ``--cost-limit 10`` to
``evaluation-limit-10.csv``. With the seed and the number of episodes of the run, the episodes of the mean
action are those of ``eval_reward`` and ``eval_cost`` in its ``metrics.csv``.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tensordict.nn import ProbabilisticTensorDictSequential

from safe_components.training import (
    RecipeConfig,
    Task,
    evaluate,
    explained_errors,
    load_policy,
    options,
    overlay,
    record_video,
    with_run,
)
from safe_components.training.config import read_run, validate
from safe_components.training.deploy import find_policy, import_own_policy
from safe_components.training.recipes import load_recipe

_MOST_COPIES = 50  # environments that are stepped together; for more episodes, each runs several
ACTIONS = {"mean": "mean action", "sampled": "sampled actions"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluation of a saved policy."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """directory of the run"""
    recipe: Path | None = None
    """file that registers the builder of the policy; None if the policy is one of this package"""
    episodes: options.Steps = 20
    """number of episodes of each kind; a number above 50 is rounded up to a multiple of 50"""
    seed: options.Seed = 0
    """seed of the environments and of the sampled actions"""
    cost_limit: options.Limits = ()
    """limits on the costs of an episode; empty for those of the run. A policy of --env.limits keeps them"""
    actions: Literal["both", "mean", "sampled"] = "both"
    """the mean action, sampled actions as in training, or both, one after the other"""
    video: bool = False
    """write a video of episodes to RUN_DIR/video.mp4 (video.gif without imageio-ffmpeg)"""
    video_episodes: options.Count = 3
    """number of episodes in the video, of the mean action unless --actions is sampled"""
    device: str = "cpu"
    """device of the policy"""
    traceback: bool = False
    """show the traceback of an error instead of one line"""


def summary(ended: Mapping[str, torch.Tensor], limits: Mapping[str, float]) -> str:
    """Return the mean, the standard deviation and the range over episodes, with one line per quantity.

    Args:
        ended: ``reward`` ``[n]``, ``cost`` ``[n, m]`` and ``length`` ``[n]``, as ``evaluate`` returns them.
        limits: limits on the cost of an episode by the names of the costs.
    """
    rows = {"reward": ended["reward"]}
    for (name, limit), cost in zip(limits.items(), ended["cost"].unbind(-1), strict=True):
        rows[f"{name} (limit {limit:g})"] = cost
    rows["length"] = ended["length"]
    title = f"over {len(ended['reward'])} episodes"
    lines = [f"{title:<24}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}"]
    for name, value in rows.items():
        numbers = (value.mean(), value.std(correction=0), value.min(), value.max())
        lines.append(f"{name:<24}" + "".join(f"{float(number):10.2f}" for number in numbers))
    return "\n".join([*lines, f"{'over a limit':<24}{float(_over(ended, limits).mean()):>10.0%}"])


def columns(limits: Mapping[str, float]) -> list[str]:
    """Return the names of the columns of ``evaluation.csv``."""
    return ["action", "seed", "checkpoint", "episode", "reward", *limits, "length", "over_limit"]


def append_csv(
    path: Path, labels: Sequence[object], ended: Mapping[str, torch.Tensor], limits: Mapping[str, float]
) -> None:
    """Append one row per episode, in the form of :func:`columns`.

    Args:
        path: file to append to; it is made if it does not exist.
        labels: the kind of action, the seed and the checkpoint.
        ended: episodes, as ``evaluate`` returns them.
        limits: limits on the cost of an episode by the names of the costs.
    """
    numbers = [
        ended["reward"][:, None],
        ended["cost"],
        ended["length"][:, None],
        _over(ended, limits)[:, None],
    ]
    with path.open("a", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        if not file.tell():
            out.writerow(columns(limits))
        for episode, row in enumerate(torch.cat(numbers, -1).tolist(), start=1):
            out.writerow([*labels, episode, *(f"{number:.8g}" for number in row)])


def _over(ended: Mapping[str, torch.Tensor], limits: Mapping[str, float]) -> torch.Tensor:
    return (ended["cost"] > torch.tensor(list(limits.values()), dtype=torch.float64)).any(-1).double()


def _refuse_other_columns(path: Path, limits: Mapping[str, float]) -> None:
    if path.is_file() and path.stat().st_size:
        with path.open(encoding="utf-8") as file:
            found = file.readline().strip().split(",")
        if found != columns(limits):
            raise ValueError(f"{path} has other columns ({', '.join(found)}): move it away, then repeat")


def _setting(plain: Any, path: str) -> Any:
    """Return a setting, or a group of settings, of a saved configuration; None if it is missing."""
    for name in path.split("."):
        plain = plain.get(name) if isinstance(plain, Mapping) else None
    return plain


def main(config: Config) -> None:
    """Evaluate the policy, print a summary for each kind of action, and write the files."""
    saved = read_run(config.run_dir)
    if encoder := _setting(saved["config"], "encoder"):
        raise ValueError(
            f"the policy of {config.run_dir} reads features of the encoder {encoder}. Checkpoints hold no "
            "file of such a policy; its evaluations in training are in metrics.csv"
        )
    if config.recipe is not None:
        load_recipe(config.recipe)  # it registers the builder of its policy
    import_own_policy(config.run_dir)  # likewise, if --policy named it
    # Every recipe has these settings.
    shared = {path: _setting(saved["config"], path) for path in ("env", "budget.cost_limit", "run.threads")}
    trained = overlay(RecipeConfig(), shared, str(config.run_dir / "config.yaml"))
    if config.cost_limit:
        trained = overlay(trained, {"budget.cost_limit": config.cost_limit}, "--cost-limit")
    copies = min(config.episodes, _MOST_COPIES)
    settings = with_run(trained, eval_episodes=copies, seed=config.seed, device=config.device)
    validate(settings)
    checkpoint = find_policy(config.run_dir).relative_to(config.run_dir).parts[1]
    policies = {
        kind: load_policy(config.run_dir, deterministic=kind == "mean", device=config.device)
        for kind in (ACTIONS if config.actions == "both" else [config.actions])
    }
    if not isinstance(next(iter(policies.values())).module.policy, ProbabilisticTensorDictSequential):
        if config.actions == "sampled":
            raise ValueError(f"the policy of {saved['recipe']} is deterministic: omit --actions sampled")
        policies.pop("sampled", None)

    task = Task(settings)
    limits = {f"cost{name}": limit for name, limit in zip(task.cost_suffixes, task.limits, strict=True)}
    path = config.run_dir / f"evaluation{''.join(f'-limit-{limit:g}' for limit in config.cost_limit)}.csv"
    _refuse_other_columns(path, limits)
    said = str(path)
    for kind, policy in policies.items():
        env = task.evaluation_env(scaled=False)
        ended = evaluate(policy, env, config.episodes, seed=config.seed)
        print(f"{checkpoint}: {saved['recipe']} on {trained.env.id}, {ACTIONS[kind]}, seed {config.seed}")
        print(summary(ended, limits))
        try:
            append_csv(path, (kind, config.seed, checkpoint), ended, limits)
        except OSError as error:  # a read-only directory, for example
            said = f"nothing was written: {error}"
    print(said)
    if config.video:
        print(
            record_video(
                next(iter(policies.values())),
                task.config.env,
                config.run_dir / "video",
                episodes=config.video_episodes,
                seed=config.seed,
                device=task.device,
                wrap=task.with_inputs,
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
