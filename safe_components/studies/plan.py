"""The plan of a study. Each member is one run of a recipe, and all are checked before the first starts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from safe_components.studies.variants import VARIANTS, Choice, Variant, choose_all
from safe_components.training import RecipeConfig, Task, config_to_dict, leaves, overlay, with_run, with_value
from safe_components.training.config import flag_of, read_config, validate
from safe_components.training.recipes import load_recipe, recipe_file
from safe_components.training.settings import read_settings

__all__ = ["Member", "check_limits", "plan"]

# Settings that the study decides. Some of them make its variants comparable.
_OF_THE_STUDY = (
    "env.id",
    "env.max_episode_steps",
    "env.cost_keys",
    "budget.cost_limit",
    "run.total_frames",
    "run.seed",
    "run.run_dir",
    "run.settings",
    "run.config",
    "run.resume",
    "run.progress",
    "run.traceback",
)


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a study: a variant with a seed.

    Attributes:
        label: name of the variant, as given.
        recipe: file of the recipe.
        config: configuration of the run.
        directory: directory of the run.
    """

    label: str
    recipe: Path
    config: RecipeConfig
    directory: Path

    @property
    def name(self) -> str:
        """The name ``variant/seed-K``."""
        return f"{self.label}/seed-{self.config.run.seed}"

    @property
    def log(self) -> Path:
        """The file that receives the output of the run."""
        return self.directory / "output.log"

    def write(self) -> Path:
        """Write the configuration for the recipe's ``--config`` to ``member.yaml``; return the path."""
        plain = config_to_dict(self.config)
        for place in ("run_dir", "config", "resume"):  # the process that runs the member decides these
            del plain["run"][place]
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "member.yaml"
        path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
        return path


def plan(
    variants: Sequence[str],
    seeds: Sequence[int],
    directory: Path,
    *,
    settings: str | None = None,
    file: Path | None = None,
    shared: Mapping[str, Any] | None = None,
    changes: Mapping[str, str] | None = None,
) -> list[Member]:
    """Return every member of a study, with a checked configuration.

    A configuration starts from the recipe's defaults. The following override it in this order: ``settings``,
    ``file``, ``shared``, ``changes``, the changes of the variant, and the values given with the variant's
    name.

    Args:
        variants: variants in the form that `choose_all` takes.
        seeds: seeds of each variant.
        directory: directory of the study.
        settings: settings of a task, in the form of ``--settings``.
        file: configuration in the form of ``--config``, whose settings every chosen recipe must have.
        shared: settings that all recipes share, as nested plain data.
        changes: further values by path, as words of a command line. ``PATH`` changes all variants, so every
            chosen recipe must have that setting; ``RECIPE.PATH`` changes the variants of one recipe.

    Returns:
        The members in the order of their seeds, so that a study that stops early has compared all variants.

    Raises:
        ValueError: with one line, if a variant or a setting does not exist, if a value is invalid, or if two
            variants are the same.
        FileNotFoundError: if the settings or the file do not exist.
    """
    choices, changes = [choice for text in variants for choice in choose_all(text)], changes or {}
    chosen = [choice.variant for choice in choices]
    names = {variant.recipe_name for variant in chosen}
    for path in changes:
        if (recipe := _recipe_named(path, chosen)) not in (None, *names):
            raise ValueError(f"--set {path}: no variant of {recipe}.py is among {', '.join(variants)}")
    planned: dict[str, tuple[Choice, Path, RecipeConfig]] = {}
    for choice in choices:
        place = re.sub(r"[^\w.=+-]+", "_", choice.label)
        if place in planned:
            other = planned[place][0].label
            raise ValueError(
                f"variants {other} and {choice.label} are the same, or have the same directory name"
            )
        recipe_path = recipe_file(choice.variant.recipe)
        config = load_recipe(recipe_path).Config()
        config = config if settings is None else read_settings(config, settings)
        config = config if file is None else read_config(config, file)
        config = overlay(config, shared or {}, "the study")
        planned[place] = choice, recipe_path, _changed(config, choice, _changes_for(choice, changes, chosen))
    own: dict[str, Any] = {"run_dir": None, "config": None, "resume": None, "settings": settings}
    own |= {"progress": False, "traceback": False}
    return [
        Member(
            choice.label,
            recipe_path,
            with_run(config, seed=seed, **own),
            directory.absolute() / place / f"seed-{seed}",
        )
        for seed in seeds
        for place, (choice, recipe_path, config) in planned.items()
    ]


def _changed(base: RecipeConfig, choice: Choice, changes: Mapping[str, str]) -> RecipeConfig:
    """Return the configuration of a variant, given the study's configuration of its recipe."""
    variant, who, config = choice.variant, f"variant {choice.label}", base
    for path, words in changes.items():
        config = with_value(config, path, words, f"--set for {variant.recipe_name}")
    values = leaves(config)
    relative = {path: _times(values[other], factor) for path, (other, factor) in variant.relative.items()}
    config = overlay(config, {**variant.changes, **relative}, who)
    for path, words in choice.overrides.items():
        config = with_value(config, path, words, who)
    before, after = leaves(base), leaves(config)
    for path in _OF_THE_STUDY:
        if before[path] != after[path]:
            option = flag_of(path).replace("_", "-")
            raise ValueError(f"{who}: {option} is the same for the whole study: use --{option}")
    try:
        validate(config)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None
    return config


def _recipe_named(path: str, chosen: Sequence[Variant]) -> str | None:
    """Return the recipe in ``RECIPE.PATH``; None if ``path`` names no recipe."""
    name, dot, _ = path.replace("-", "_").partition(".")
    known = {variant.recipe_name for variant in (*VARIANTS.values(), *chosen)}
    return name if dot and name in known else None


def _changes_for(choice: Choice, changes: Mapping[str, str], chosen: Sequence[Variant]) -> dict[str, str]:
    """Return the ``changes`` for the recipe of a choice; those that name the recipe override the others."""
    named = {path: _recipe_named(path, chosen) for path in changes}
    for_all = {path: words for path, words in changes.items() if named[path] is None}
    own = {path: words for path, words in changes.items() if named[path] == choice.variant.recipe_name}
    return for_all | {path.partition(".")[2]: words for path, words in own.items()}


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return [_times(number, factor) for number in value]
    return type(value)(value * factor)


def check_limits(members: Sequence[Member]) -> None:
    """Make the environment once, and compare its number of costs with the number of limits.

    Raises:
        ValueError: if these numbers differ, or if there is no such environment.
    """
    Task(with_run(members[0].config, eval_episodes=1)).evaluation_env().close()
