"""The record of a study, ``study.yaml``: the same command goes on with it, another is refused."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from plumbing.members import Member, options_of

__all__ = ["hold", "merge", "read_study", "record_study"]

FILE = "study.yaml"
_LOCK = ".lock"

# May differ when a study is continued: how long, where and how it is shown.
_FREE = ("seed", "total-frames", "device", "threads", "run-dir", "resume", "loggers", "progress", "traceback")
# Must be equal for variants to be compared.
_SHARED = ("env.id", "env.max-episode-steps", "env.cost-keys", "cost-limit")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _settings(member: Member) -> dict[str, Any]:
    options = options_of(member.config)
    return {name: _plain(value) for name, value in options.items() if name not in _FREE}


def read_study(directory: Path) -> dict[str, Any]:
    """The record: ``command``, and by variant its recipe, seeds, total frames, place and settings.

    Raises:
        FileNotFoundError: if the directory holds no study.
    """
    path = directory / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no study: there is no {FILE} in it")
    return yaml.safe_load(path.read_text())


def _require_equal(
    directory: Path, label: str, old: dict[str, Any], new: dict[str, Any], names: Iterable[str]
) -> None:
    for name in names:
        if name in old and name in new and old[name] != new[name]:
            raise ValueError(
                f"{directory} holds another study ({label}, {name}: there {old[name]}, now {new[name]}); "
                "choose another --run-dir"
            )


def merge(directory: Path, members: Sequence[Member]) -> dict[str, Any]:
    """The variants of a study once ``members`` have joined those already there; nothing is written.

    A study may grow by variants, seeds and frames. What it has must keep its settings.

    Raises:
        ValueError: if a variant had other settings, or the environment or the limits were others.
        FileExistsError: if the directory holds something else.
    """
    if (directory / FILE).is_file():
        variants = read_study(directory)["variants"]
    elif directory.exists() and any(entry.name != _LOCK for entry in directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty and holds no study; choose another --run-dir")
    else:
        variants = {}
    for member in members:
        settings = _settings(member)
        for label, other in variants.items():
            names = settings if label == member.label else _SHARED
            _require_equal(directory, label, other["settings"], settings, names)
        entry = variants.setdefault(member.label, {"recipe": member.recipe.name, "seeds": []})
        entry["seeds"] = sorted({*entry["seeds"], member.config.seed})
        entry["total_frames"] = member.config.total_frames
        entry["place"] = member.directory.parent.name
        entry["settings"] = settings
    return variants


def record_study(directory: Path, members: Sequence[Member], command: str) -> None:
    """Write down the study as :func:`merge` has it, and the command that was last given."""
    document = {"command": command, "variants": merge(directory, members)}
    partial = directory / f"{FILE}.partial"
    partial.write_text(yaml.safe_dump(document, sort_keys=False))
    partial.replace(directory / FILE)


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Keep other studies out of the directory; the system takes the lock back however this process ends.

    Raises:
        BlockingIOError: if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is running the study in {directory}") from None
        yield
