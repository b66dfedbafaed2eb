"""The record of a study in ``study.yaml``, by which the same command continues it and another is refused."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from safe_components.studies.plan import Member
from safe_components.training import leaves

__all__ = ["hold", "merge", "read_study", "record_study"]

FILE = "study.yaml"
LAYOUT = 2
_LOCK = ".lock"

# Settings that may differ when a study is continued: its length, its device and its reports.
_FREE = {
    f"run.{name}"
    for name in (
        "seed",
        "total_frames",
        "device",
        "threads",
        "run_dir",
        "config",
        "resume",
        "loggers",
        "progress",
        "traceback",
    )
}
# Settings that must be equal for variants to be comparable.
_SHARED = ("env.id", "env.max_episode_steps", "env.cost_keys", "budget.cost_limit")


def _settings(member: Member) -> dict[str, Any]:
    return {
        path: list(value) if isinstance(value, tuple) else value
        for path, value in leaves(member.config).items()
        if path not in _FREE
    }


def read_study(directory: Path) -> dict[str, Any]:
    """Return the record of a study.

    Returns:
        ``layout``, ``command`` and ``variants``. For each label, ``variants`` holds ``recipe``, ``seeds``,
        ``total_frames``, ``place`` and ``settings``.

    Raises:
        FileNotFoundError: if the directory holds no study.
        ValueError: if the study is of an older layout.
    """
    path = directory / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no study: there is no {FILE} in it")
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if document.get("layout", 1) != LAYOUT:
        raise ValueError(
            f"{path} has layout {document.get('layout', 1)}, but this version of safe_components reads "
            f"layout {LAYOUT}: choose another --run-dir, or use the version that made it"
        )
    return document


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
    """Return the variants of a study after ``members`` have been added; write nothing.

    A study may grow by variants, seeds and frames. An existing variant must keep its settings.

    Raises:
        ValueError: if a variant has other settings than before, or if the environment or the limits differ.
        FileExistsError: if the directory is not empty and holds no study.
    """
    if (directory / FILE).is_file():
        variants: dict[str, Any] = read_study(directory)["variants"]
    elif directory.exists() and any(entry.name != _LOCK for entry in directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty and holds no study; choose another --run-dir")
    else:
        variants = {}
    for member in members:
        settings = _settings(member)
        for label, other in variants.items():
            names = settings if label == member.label else _SHARED
            _require_equal(directory, label, other["settings"], settings, names)
        entry = variants.setdefault(member.label, {"recipe": member.config.recipe, "seeds": []})
        entry["seeds"] = sorted({*entry["seeds"], member.config.run.seed})
        entry["total_frames"] = member.config.run.total_frames
        entry["place"] = member.directory.parent.name
        entry["settings"] = settings
    return variants


def record_study(directory: Path, members: Sequence[Member], command: str) -> None:
    """Write the variants that :func:`merge` returns and the latest command to ``study.yaml``."""
    document = {"layout": LAYOUT, "command": command, "variants": merge(directory, members)}
    partial = directory / f"{FILE}.partial"
    partial.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    partial.replace(directory / FILE)


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Lock the directory; the system releases the lock when this process ends for any reason.

    Raises:
        BlockingIOError: if another process holds the lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is running the study in {directory}") from None
        yield
