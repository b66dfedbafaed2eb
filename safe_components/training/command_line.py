"""The command line of a recipe, which answers every mistake with one clear line."""

from __future__ import annotations

import dataclasses
import functools
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from safe_components.ops import is_import_path
from safe_components.training.config import (
    choices_of,
    choose,
    fields,
    flag_of,
    leaves,
    load_config,
    name_of,
    not_chosen,
    read_config,
    renamed,
    said,
    validate,
)
from safe_components.training.options import RecipeConfig
from safe_components.training.settings import read_settings

__all__ = ["given_settings", "parse_config"]

# Settings that may differ in a resumed run. Any other difference would make it a different experiment under
# the old name.
_MAY_CHANGE = (
    "run.total_frames",
    "run.device",
    "run.resume",
    "run.config",
    "run.run_dir",
    "run.loggers",
    "run.progress",
    "run.threads",
    "run.traceback",
    "run.log_interval",
    "run.checkpoint_interval",
    "run.eval_episodes",
    "collect.workers",
    "execution.mode",
)

C = TypeVar("C", bound=RecipeConfig)


def parse_config(config_type: type[C], arguments: Sequence[str] | None = None, default: C | None = None) -> C:
    """Return the configuration that a command line asks for.

    Defaults come first. The settings of a task (``--settings NAME``), a file (``--config FILE``) and the
    flags follow in this order, and each overrides what came before. The file may be the ``config.yaml`` of a
    run directory. With ``--resume DIR`` the configuration saved in DIR replaces the defaults and the
    settings. The file and the flags may then change only the length of the run, its device and its reports.

    Args:
        config_type: configuration class of the recipe.
        arguments: words of the command line; None takes those of this process.
        default: configuration that replaces everything before the flags.

    Raises:
        SystemExit: with one line, if a setting does not exist, is out of range, or contradicts the saved
            configuration, or if the directory to resume is not a run of this recipe.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        start, saved = (default, None) if default is not None else _before_flags(config_type, arguments)
        start, rest = _take_choices(start, arguments)
        _refuse_misplaced(start, rest)
        config = tyro.cli(
            config_type,
            args=rest,
            default=start,
            description=_description(config_type, start),
            config=(tyro.conf.AvoidSubcommands,),
        )
        if saved is not None:
            _require_same(saved, config)
        validate(config)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    return config


def given_settings(config_type: type, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings for which a command line holds flags, as nested plain data.

    The result also holds settings that are given their default value. Exclusive choices are not read.

    Example:
        >>> given_settings(RecipeConfig, ["--seed", "0", "--cost-limit", "10"])
        {'env': {}, 'run': {'seed': 0}, 'budget': {'cost_limit': (10.0,)}}
    """
    return tyro.cli(_partial(config_type), args=list(arguments))


def _partial(group: Any) -> Any:
    """Return a type for tyro that is like the dataclass ``group`` but omits settings that are not given."""
    wanted = {}
    hints = typing.get_type_hints(group, include_extras=True)
    for name in [field.name for field in dataclasses.fields(group)]:
        if choices_of(hint := hints[name]):
            continue
        notes: tuple[Any, ...] = ()
        while typing.get_origin(hint) is typing.Annotated:
            hint, *outer = typing.get_args(hint)
            notes = (*outer, *notes)
        hint = _partial(hint) if dataclasses.is_dataclass(hint) else hint
        wanted[name] = typing.Annotated[(hint, *notes)] if notes else hint
    make: Any = typing.TypedDict  # type checkers require its fields to be written out
    return make(group.__name__, wanted, total=False)


def _before_flags(config_type: type[C], arguments: Sequence[str]) -> tuple[C, C | None]:
    """Return the configuration that the flags override, and the saved configuration of a resumed run."""
    settings, file, resumed = (_value_of(flag, arguments) for flag in ("--settings", "--config", "--resume"))
    config, saved = config_type(), None
    if resumed is not None:
        config = saved = load_config(config_type, Path(resumed))
    elif settings is not None:
        config = read_settings(config, settings)
    return (config if file is None else read_config(config, Path(file))), saved


def _words_of(flag: str, arguments: Sequence[str]) -> list[tuple[int, str | None]]:
    """Return the positions of a flag in a command line and the word after each; None if no word follows."""
    found = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name.replace("_", "-") == flag:
            following = arguments[index + 1] if index + 1 < len(arguments) else None
            found.append((index, value if equals else following))
    return found


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Return the value of a flag in a command line; None if the flag is absent or its value is ``None``."""
    found = _words_of(flag, arguments)
    return None if not found or found[-1][1] == "None" else found[-1][1]


def _take_choices(config: C, arguments: Sequence[str]) -> tuple[C, list[str]]:
    """Make the exclusive choices that a command line names, and return its remaining words."""
    rest = list(arguments)
    for path, hint, _ in list(fields(config)):
        if not (choices := choices_of(hint)):
            continue
        flag = "--" + path.replace("_", "-")
        for index, word in reversed(_words_of(flag, rest)):
            if word is None or word.startswith("--"):
                raise ValueError(f"{flag} needs one of {', '.join(said(choices))}")
            del rest[index : index + (1 if "=" in rest[index] else 2)]
        if words := _words_of(flag, arguments):
            now = functools.reduce(getattr, path.split("."), config)
            word = str(words[-1][1])
            name = word if is_import_path(word) else word.lower()
            config = _replaced(config, path, choose(choices, now, name, flag.removeprefix("--")))
    return config, rest


def _replaced(group: Any, path: str, value: Any) -> Any:
    name, _, below = path.partition(".")
    return dataclasses.replace(
        group, **{name: _replaced(getattr(group, name), below, value) if below else value}
    )


def _refuse_misplaced(config: Any, arguments: Sequence[str]) -> None:
    """Raise ValueError for options of version 0.1 and for options of a choice that is not made."""
    known = {flag_of(path).replace("_", "-") for path in leaves(config)}
    other = {path.replace("_", "-"): choice.replace("_", "-") for path, choice in not_chosen(config).items()}
    for argument in arguments:
        flag = argument.partition("=")[0]
        name = flag.removeprefix("--").removeprefix("no-").replace("_", "-")
        if not flag.startswith("--") or name in known:
            continue
        if name in other:
            raise ValueError(f"{flag} needs --{other[name]}, which is not chosen")
        if new := renamed(config, name):
            raise ValueError(f"{flag} is now {' or '.join(f'--{option}' for option in new)}")


def _description(config_type: type, default: Any) -> str:
    lines = []
    for path, hint, value in fields(default):
        if choices := choices_of(hint):
            flag = "--" + path.replace("_", "-")
            lines.append(f"  {flag} {{{','.join(said(choices))}}}  (now {name_of(choices, value)})")
    text = (config_type.__doc__ or "").strip()
    if not lines:
        return text
    return "\n".join([text, "", "Exclusive choices (each has options of its own below):", *lines])


def _require_same(saved: RecipeConfig, config: RecipeConfig) -> None:
    old, new = leaves(saved), leaves(config)
    said = "; ".join(
        f"{flag_of(path)}: saved {old.get(path)}, now {value}"
        for path, value in new.items()
        if path not in _MAY_CHANGE and old.get(path) != value
    )
    if said:
        raise ValueError(
            f"{saved.run.run_dir} was started with another configuration ({said}); "
            "drop these flags, or start a new run without --resume"
        )
