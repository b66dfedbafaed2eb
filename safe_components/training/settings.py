"""Settings of a task in a file, for all recipes or for a single recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safe_components.training.config import overlay, read_yaml
from safe_components.training.options import RecipeConfig
from safe_components.training.recipes import recipes_folder

__all__ = ["read_sections", "read_settings"]

ALL = "all"
C = TypeVar("C", bound=RecipeConfig)


def read_settings(config: C, settings: str) -> C:
    """Replace settings of ``config`` by those of a task.

    The settings are a YAML file. Its section ``all`` applies to every recipe. A section with the name of a
    recipe applies to that recipe and overrides ``all``. A section holds part of a configuration, in the form
    of ``config.yaml``:

        all:
          env: {id: SafetyBallRun-v0}
          budget: {cost_limit: 10}
        cvpo:
          critics: {layer_norm: false}
          trust_region: {retract: {kl_mean: 0.02}}

    Args:
        config: configuration of the recipe, which names the recipe.
        settings: path of such a file, or the name of one that comes with the recipes.

    Raises:
        FileNotFoundError: if there is no such file; the message lists the files that come with the recipes.
        ValueError: if the file has another form, a section that belongs to no recipe, or an unknown setting.
    """
    path, sections = read_sections(settings, config.recipe)
    for name in (ALL, config.recipe):
        config = overlay(config, sections.get(name, {}), f"{path}, {name}")
    return config


def read_sections(settings: str, *recipes: str) -> tuple[Path, Mapping[str, Mapping[str, Any]]]:
    """Return the path of a settings file, in the form of :func:`read_settings`, and its sections.

    Args:
        settings: path of such a file, or the name of one that comes with the recipes.
        recipes: names of recipes that do not come with the package; the file may have sections for them.

    Raises:
        FileNotFoundError: if there is no such file; the message lists the files that come with the recipes.
        ValueError: if the file has another form, or a section that belongs to no recipe.
    """
    folder, path = recipes_folder() / "settings", Path(settings)
    if not path.is_file():
        path = folder / f"{settings}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise FileNotFoundError(f"settings {settings!r}: no such file, and {folder} holds {known}")
    sections = read_yaml(path)
    for name, section in sections.items():
        if name not in (ALL, *recipes) and not (folder.parent / f"{name}.py").is_file():
            raise ValueError(f"{path} has a section {name!r}: it must be {ALL!r} or the name of a recipe")
        if not isinstance(section, Mapping):
            raise ValueError(f"{path}: the section {name} must hold settings, but it holds {section!r}")
    return path, sections
