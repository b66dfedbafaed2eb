"""Conversion of nested dataclasses to plain data, and back with a check of every key, type and range."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from safe_components.ops import is_import_path
from safe_components.training.options import Range, RecipeConfig
from safe_components.training.renamed import RENAMED, RENAMED_CHOICES

__all__ = [
    "CONFIG_FILE",
    "config_to_dict",
    "leaves",
    "load_config",
    "overlay",
    "read_config",
    "read_run",
    "read_yaml",
    "validate",
    "with_run",
    "with_value",
]

CONFIG_FILE = "config.yaml"
LAYOUT = 2
"""version of the layout of ``config.yaml`` and of the checkpoints beside it"""

OWN = "own"
"""name of the alternative that takes an import path"""

C = TypeVar("C", bound=RecipeConfig)
_Choices = dict[str, type | None]


# --- fields and exclusive choices ---------------------------------------------------------------------


def _hints(group: Any) -> dict[str, Any]:
    """Return the names and type hints of the fields of a dataclass instance, in order."""
    hints = typing.get_type_hints(type(group), include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def _bare(hint: Any) -> Any:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint


def choices_of(hint: Any) -> _Choices:
    """Return the alternatives of an exclusive choice by name, ``none`` for None; empty for other fields."""
    hint = _bare(hint)
    if get_origin(hint) not in (Union, types.UnionType):
        return {}
    members = [_bare(member) for member in get_args(hint)]
    groups = [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]
    if not groups:
        return {}
    named: _Choices = {group.__name__.removesuffix("Config").lower(): group for group in groups}
    return named | ({"none": None} if type(None) in members else {})


def _is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def fields(group: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, type hint and value of every field below ``group``; a group precedes its own fields."""
    for name, hint in _hints(group).items():
        path, value = f"{prefix}{name}", getattr(group, name)
        yield path, hint, value
        if _is_group(value):
            yield from fields(value, f"{path}.")


def leaves(config: Any) -> dict[str, Any]:
    """Return the single settings of a configuration by path.

    The value of an exclusive choice is its name.

    Example:
        >>> leaves(RecipeConfig())["env.num_envs"]
        10
    """
    found = {}
    for path, hint, value in fields(config):
        if choices := choices_of(hint):
            found[path] = name_of(choices, value)
        elif not _is_group(value):
            found[path] = value
    return found


def not_chosen(config: Any) -> dict[str, str]:
    """Return the settings of alternatives that ``config`` has not chosen, by path, with their choice."""
    known, found = {path for path, _, _ in fields(config)}, dict[str, str]()
    for path, hint, _ in fields(config):
        for name, group in choices_of(hint).items():
            for below, _, _ in fields(group(), f"{path}.") if group else ():
                if below not in known:
                    found.setdefault(below, f"{path} {name}")
    return found


def name_of(choices: _Choices, value: Any) -> str:
    kind = None if value is None else type(value)
    return next(name for name, group in choices.items() if group is kind)


# --- plain data ---------------------------------------------------------------------------------------


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain numbers, strings, lists and mappings, as in ``config.yaml``."""
    return {name: _to_plain(hint, getattr(config, name)) for name, hint in _hints(config).items()}


def _to_plain(hint: Any, value: Any) -> Any:
    if _is_group(value):
        plain = config_to_dict(value)
        choices = choices_of(hint)
        return {name_of(choices, value): plain} if choices else plain
    if isinstance(value, tuple):
        return [_to_plain(None, item) for item in value]
    return str(value) if isinstance(value, Path) else value


def overlay(config: C, plain: Mapping[str, Any], source: str) -> C:
    """Replace settings of ``config`` by those of nested plain data, such as the content of a YAML file.

    An exclusive choice is given by its name, ``trust_region: soft``, or with settings of its own,
    ``trust_region: {soft: {coef_mean: 2.0}}``. Settings of the current choice may be given without its name.
    Later keys override earlier keys.

    Args:
        config: configuration that supplies all settings that ``plain`` omits.
        plain: nested mappings, whose keys are field names or several field names joined by dots.
        source: origin of the data, for error messages.

    Raises:
        ValueError: if a key does not exist (the message names the nearest that does), or if a value has the
            wrong type or is outside its range.

    Example:
        >>> overlay(RecipeConfig(), {"env": {"num_envs": 3}}, "here").env.num_envs
        3
    """
    return typing.cast(C, _overlay_group(config, plain, source, "", config))


def _overlay_group(group: Any, plain: Any, source: str, prefix: str, whole: Any) -> Any:
    if not isinstance(plain, Mapping):
        raise ValueError(f"{source}: {prefix.rstrip('.') or 'the file'} must hold settings, not {plain!r}")
    hints = _hints(group)
    for key, value in plain.items():
        path = prefix + str(key).replace("-", "_")
        name, _, below = path.removeprefix(prefix).partition(".")
        if name not in hints:
            others = _nearest(whole, path) or f"; it has {', '.join(hints)}"
            raise ValueError(f"{source} has no setting {path}{others}")
        value = {below: value} if below else value
        new = _from_plain(hints[name], getattr(group, name), value, source, f"{prefix}{name}", whole)
        group = dataclasses.replace(group, **{name: new})
    return group


def _from_plain(hint: Any, now: Any, plain: Any, source: str, path: str, whole: Any) -> Any:
    """Return ``plain`` as the type ``hint``; groups and choices start from the value ``now``."""
    choices, settings = choices_of(hint), plain
    if not choices and not _is_group(now):
        return _named(source, _typed, hint, plain, path)
    if choices:
        if not isinstance(plain, Mapping):
            name, settings = "none" if plain is None else str(plain), None
        elif len(plain) == 1 and str(next(iter(plain))).partition(".")[0] in choices:
            ((key, value),) = plain.items()
            name, _, below = str(key).partition(".")
            settings = {below: value} if below else value
        else:
            name = name_of(choices, now)
        now = _named(source, choose, choices, now, name, path)
        settings = {} if settings is None else settings
        if now is None and settings:
            others = ", ".join(other for other in choices if other != name)
            raise ValueError(f"{source}: {path} is none, which has no settings; choose one of {others}")
    return now if now is None else _overlay_group(now, settings, source, f"{path}.", whole)


def _named(source: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` and prefix the message of its ValueError with ``source``."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def choose(choices: _Choices, now: Any, name: str, path: str) -> Any:
    """Return the alternative ``name``: ``now`` if it is already chosen, otherwise one with its defaults.

    An import path stands for the alternative ``own``, if there is one, with this path as its function.
    """
    own = choices.get(OWN)
    if own is not None and is_import_path(name):
        chosen: Any = now if type(now) is own else own()
        return dataclasses.replace(chosen, function=name)
    if name not in choices:
        moved = RENAMED_CHOICES.get((path, name))
        hint = f"; {name} is now {moved}" if moved else _close(name, choices)
        raise ValueError(f"{path} is {name!r}, must be one of {', '.join(said(choices))}{hint}")
    group = choices[name]
    return now if type(now) is group else None if group is None else group()


def said(choices: _Choices) -> list[str]:
    """Return the names of alternatives as they are written on the command line."""
    return ["MODULE:NAME" if name == OWN else name for name in choices]


def _close(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest(config: Any, path: str) -> str:
    """Return a hint at the settings that the unknown name ``path`` may mean."""
    known, other, own = [name for name, _, _ in fields(config)], not_chosen(config), path.rpartition(".")[2]
    if path in other:
        return f"; {other[path]} has it"
    moved = [name for name in known if name.rpartition(".")[2] == own]
    moved = moved or [option.replace("-", "_") for option in renamed(config, own.replace("_", "-"))]
    if not moved:
        tails = {name.rpartition(".")[2]: name for name in known}
        moved = difflib.get_close_matches(path, known, n=1)
        moved = moved or [tails[tail] for tail in difflib.get_close_matches(own, list(tails), n=1)]
    return f"; did you mean {' or '.join(moved)}?" if moved else ""


def renamed(config: Any, old: str) -> list[str]:
    """Return the options that replace one of version 0.1, under their names on the command line."""
    known = {
        path.replace("_", "-") for path in (*(name for name, _, _ in fields(config)), *not_chosen(config))
    }
    return [option for option in RENAMED.get(old, ()) if option.split()[0] in known]


def _typed(hint: Any, value: Any, path: str) -> Any:
    """Return ``value`` as the type that ``hint`` asks for, and check its range."""
    ranges: list[Range] = []
    while get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        ranges += [note for note in notes if isinstance(note, Range)]
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        members = get_args(hint)
        if value is None and type(None) in members:
            return None
        return _typed(next(member for member in members if member is not type(None)), value, path)
    if origin is Literal:
        if value not in get_args(hint):
            options = get_args(hint)
            raise ValueError(f"{path} is {value!r}, must be one of {', '.join(map(str, options))}")
    elif origin is tuple:
        if value is None or value == "none":
            value = ()
        items = value if isinstance(value, (list, tuple)) else [value]
        value = tuple(_typed(get_args(hint)[0], item, path) for item in items)
    elif hint is Path and isinstance(value, str):
        value = Path(value)
    elif hint is float:
        value = _number(value, path)
    elif not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{path} is {value!r}, must be of type {hint.__name__}")
    for allowed in ranges:
        if (words := allowed.refusal(value)) is not None:
            raise ValueError(f"{path} is {value}, must be {words}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{path} is {value}, must be finite")
    return value


def _number(value: Any, path: str) -> float:
    # YAML 1.1 reads 1e-3, which has no decimal point, as a string.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value)
    raise ValueError(f"{path} is {value!r}, must be of type float")


def validate(config: Any) -> None:
    """Check the range of every setting of a configuration, and call the ``validate`` of its groups.

    Raises:
        ValueError: for the first invalid setting.
    """
    for path, hint, value in fields(config):
        if _is_group(value):
            if hasattr(value, "validate"):
                value.validate(config)
        elif not choices_of(hint):
            _typed(hint, value, flag_of(path))


# --- files --------------------------------------------------------------------------------------------


def with_value(config: C, path: str, words: str, source: str) -> C:
    """Replace one setting that is given as on the command line, such as ``trust-region`` and ``soft``.

    Args:
        config: configuration to change.
        path: path of the setting, such as ``estep.epsilon``. A setting without a prefix on the command line,
            such as ``cost-limit``, may also be given by its flag.
        words: value of the setting; several values are separated by spaces.
        source: origin of the value, for error messages.

    Raises:
        ValueError: under the conditions of :func:`overlay`.

    Example:
        >>> with_value(RecipeConfig(), "cost-limit", "10 20", "here").budget.cost_limit
        (10.0, 20.0)
    """
    path = path.removeprefix("--").replace("-", "_")
    path = {flag_of(known): known for known in leaves(config)}.get(path, path)
    values = [_scalar(word) for word in words.split()]
    return overlay(config, {path: values[0] if len(values) == 1 else values}, source)


def _scalar(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:  # the word is not valid YAML
        return word


def flag_of(path: str) -> str:
    """Return the name of a setting on the command line, with underscores in place of dashes."""
    return "cost_limit" if path == "budget.cost_limit" else path.removeprefix("run.")


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(plain, Mapping):
        raise ValueError(f"{path} must hold a mapping, but it holds {plain!r}")
    return plain


def read_config(config: C, path: Path) -> C:
    """Replace settings of ``config`` by those of a file.

    The file holds settings in the form that :func:`overlay` takes, or it is the ``config.yaml`` of a run. The
    run directory in such a file is ignored.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: under the conditions of :func:`overlay`, or if the run is of another recipe or of an older
            layout.
    """
    plain = read_yaml(path)
    if "config" not in plain:
        return overlay(config, plain, str(path))
    where = {"run_dir": config.run.run_dir, "resume": config.run.resume}
    return with_run(overlay(config, _settings_of(plain, config.recipe, path), str(path)), **where)


def read_run(run_dir: Path) -> Mapping[str, Any]:
    """Return the content of a run's ``config.yaml``: ``recipe``, ``layout``, ``config`` and ``versions``.

    Raises:
        FileNotFoundError: if ``run_dir`` holds no ``config.yaml``.
        ValueError: if the run is of an older layout.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} is not a run directory: it holds no {CONFIG_FILE}")
    document = read_yaml(path)
    _settings_of(document, None, path)
    return document


def _settings_of(document: Mapping[str, Any], recipe: str | None, path: Path) -> Any:
    """Return the settings of a ``config.yaml``; raise ValueError if it is cut or of another kind."""
    if (layout := document.get("layout", 1)) != LAYOUT:
        raise ValueError(
            f"{path} has layout {layout}, but this version of safe_components reads layout {LAYOUT}: "
            "continue or evaluate the run with the version that the file names, or train again"
        )
    if recipe not in (None, document.get("recipe")):
        raise ValueError(f"{path} belongs to a run of {document.get('recipe')}, not of {recipe}")
    if "versions" not in document:  # they end the file, and what is missing would be taken from the defaults
        raise ValueError(f"{path} is cut: it does not end with the versions of the packages")
    return document.get("config")


def load_config(config_type: type[C], run_dir: Path) -> C:
    """Return the configuration with which a run was started.

    Raises:
        FileNotFoundError: if ``run_dir`` holds no ``config.yaml``.
        ValueError: if the run is of another recipe or of an older layout.
    """
    path = run_dir / CONFIG_FILE
    plain = _settings_of(read_run(run_dir), config_type.recipe, path)
    return with_run(overlay(config_type(), plain, str(path)), run_dir=run_dir, resume=run_dir)


def with_run(config: C, /, **changes: Any) -> C:
    """Return ``config`` with other settings in the group ``run``.

    Example:
        >>> with_run(RecipeConfig(), seed=7).run.seed
        7
    """
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))
