"""The record of a study, ``study.yaml``: the same command goes on with it, another is refused."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from plumbing.members import Member, options_of

__all__ = ["hold", "read_study", "record_study"]

FILE = "study.yaml"

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


def _compare(directory: Path, label: str, old: dict[str, Any], new: dict[str, Any], names) -> None:
    for name in names:
        if name in old and name in new and old[name] != new[name]:
            raise ValueError(
                f"{directory} holds another study ({label}, {name}: there {old[name]}, now {new[name]}); "
                "choose another --run-dir"
            )


def record_study(directory: Path, members: Sequence[Member], command: str) -> None:
    """Write the members down beside those already there.

    A study may grow by variants, seeds and frames. What it has must keep its settings.

    Raises:
        ValueError: if a variant had other settings, or the environment or the limits were others.
        FileExistsError: if the directory holds something else.
    """
    path = directory / FILE
    if path.is_file():
        variants = read_study(directory)["variants"]
    elif directory.exists() and any(entry.name != ".lock" for entry in directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty and holds no study; choose another --run-dir")
    else:
        variants = {}
    for member in members:
        settings = _settings(member)
        for label, other in variants.items():
            _compare(
                directory, label, other["settings"], settings, settings if label == member.label else _SHARED
            )
        entry = variants.setdefault(member.label, {"recipe": member.recipe.name, "seeds": []})
        entry["seeds"] = sorted({*entry["seeds"], member.config.seed})
        entry |= {
            "total_frames": member.config.total_frames,
            "place": member.directory.parent.name,
            "settings": settings,
        }
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(yaml.safe_dump({"command": command, "variants": variants}, sort_keys=False))
    partial.replace(path)


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Keep other studies out of the directory; the system takes the lock back however this process ends.

    Raises:
        BlockingIOError: if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is running the study in {directory}") from None
        yield
