"""Settings of a task in a file, for all recipes or for one of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["settings_arguments"]

ALL = "all"


def settings_arguments(config_type: type, settings: str) -> list[str]:
    """The command line that a file of settings stands for.

    The file is YAML, ``section: {option: value}``. The section ``all`` is for every recipe, one with the name
    of a recipe's file for that one, where it wins over ``all``. Options are those of the command line without
    the dashes; a value is a number, a word, several of them or, for switches, true or false:

        all:
          env.id: SafetyBallRun-v0
          cost-limit: 10
        cvpo:
          hidden-sizes: [128, 128]
          layer-norm: false

    Args:
        config_type: of the recipe; the file that defines it names the recipe.
        settings: path of such a file, or the name of one in the folder ``settings`` beside the recipe.

    Raises:
        FileNotFoundError: if there is none, naming those there are.
        ValueError: if the file has another form, or a section that belongs to no recipe.
    """
    recipe = Path(inspect.getfile(config_type))
    path = Path(settings)
    if not path.is_file():
        folder = recipe.parent / "settings"
        path = folder / f"{settings}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "nothing"
            raise FileNotFoundError(f"settings {settings!r}: no such file, and {folder} holds {known}")
    sections = yaml.safe_load(path.read_text())
    if not isinstance(sections, Mapping) or not all(isinstance(part, Mapping) for part in sections.values()):
        raise ValueError(f"{path} must hold sections of options, 'all:' or a recipe's name first")
    for name in sections:
        if name != ALL and not (recipe.parent / f"{name}.py").is_file():
            raise ValueError(f"{path}: there is no recipe {name}.py for the section {name!r}")
    options = {**sections.get(ALL, {}), **sections.get(recipe.stem, {})}
    return [word for option, value in options.items() for word in _words(str(option), value)]


def _words(option: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    values = value if isinstance(value, list) else str(value).split()
    return [f"--{option}", *(str(word) for word in values)]
