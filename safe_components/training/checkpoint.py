"""The checkpoints of a run: written whole, verified before they are loaded, and free of code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safe_components.training.state_file import read_state, write_state

__all__ = ["CheckpointError", "Checkpoints"]

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "safe_components.checkpoint", 1
_NAME = re.compile(r"checkpoint-(\d{12})")
_STAGE, _OLD = ".stage-", ".old-"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, belongs to another run, or does not fit the components."""


class Checkpoints:
    """The checkpoints in one directory.

    A checkpoint is a directory ``checkpoint-<frames>``. Each component with a ``state_dict`` is a file
    ``<name>.safetensors`` (see `write_state`), which cannot hold code. A component with ``dump(path)`` writes
    files of its own below ``<name>/``, which are for other programs and are not loaded again. The file
    ``manifest.json`` holds the size and the SHA-256 of every other file. A checkpoint is written under
    another name and then renamed, so a killed process never leaves half of one.

    Args:
        directory: directory of the checkpoints.
        config: file whose content belongs to the run. A checkpoint of a run with another content is refused;
            None accepts any.
        keep: number of newest checkpoints that are kept. Two are enough to survive damage to the newest.
        say: function that is told about what is skipped, damaged or removed.

    Example:
        >>> import tempfile, torch
        >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
        >>> model, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> path = checkpoints.save(100, {"model": model})
        >>> sorted(file.name for file in path.iterdir())
        ['manifest.json', 'model.safetensors']
        >>> checkpoints.load({"model": other}) == path, bool((other.weight == model.weight).all())
        (True, True)
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: Path | None = None,
        keep: int = 2,
        say: Callable[[str], object] = print,
    ) -> None:
        self.directory, self._config, self._keep, self._say = directory, config, keep, say
        self._fingerprint = None if config is None else hashlib.sha256(config.read_bytes()).hexdigest()
        self._good: list[Path] = []

    def save(self, frames: int, components: Mapping[str, Any]) -> Path:
        """Write a checkpoint, remove the oldest ones of this run, and return the path.

        Raises:
            OSError: if it cannot be written, for example because the disk is full. The earlier checkpoints
                are kept.
        """
        path = self.directory / f"checkpoint-{frames:012d}"
        stage = self.directory / f"{_STAGE}{path.name}"
        try:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
            for name, component in components.items():
                if hasattr(component, "state_dict"):
                    write_state(stage / f"{name}.safetensors", component.state_dict())
                else:
                    (stage / name).mkdir()
                    component.dump(stage / name)
            manifest = {
                "format": _FORMAT,
                "version": _VERSION,
                "frames": frames,
                "config": self._fingerprint,
                "files": {name: _record(stage / name) for name in _files(stage)},
            }
            (stage / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            self._publish(stage, path)
        except OSError as error:
            shutil.rmtree(stage, ignore_errors=True)
            raise OSError(f"the checkpoint {path} cannot be written: {error}") from error
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        self._good = [kept for kept in self._good if kept != path] + [path]
        for old in self._good[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        self._good = self._good[-self._keep :]
        return path

    def _publish(self, stage: Path, path: Path) -> None:
        if not path.exists():
            stage.rename(path)
            return
        # It is there already if a run was continued from before a damaged checkpoint.
        old = self.directory / f"{_OLD}{path.name}"
        _remove(old)
        path.rename(old)
        stage.rename(path)
        _remove(old)

    def latest(self) -> Path | None:
        """Return the newest checkpoint without reading it; None if there is none."""
        return max(self._candidates(), default=None)

    def intact(self) -> Path | None:
        """Return the newest checkpoint that is whole and of this run; None if there is none at all.

        Whatever is passed over is told to ``say``.

        Raises:
            CheckpointError: if there are checkpoints, but none is whole; the message names the reasons.
        """
        reasons = []
        for path in sorted(self._candidates(), reverse=True):
            try:
                self.verify(path)
            except PermissionError:  # it may be whole
                raise
            except (CheckpointError, OSError) as error:
                reasons.append(
                    f"{path} cannot be read: {error}" if isinstance(error, OSError) else str(error)
                )
                continue
            for reason in reasons:
                self._say(f"{reason}; the checkpoint before it is used: {path}")
            return path
        if reasons:
            raise CheckpointError(f"no checkpoint can be used: {'; '.join(reasons)}")
        return None

    def verify(self, path: Path) -> Mapping[str, Any]:
        """Return the manifest of a checkpoint whose files all have their recorded size and content.

        Raises:
            CheckpointError: for the first difference.
        """
        manifest = _read_manifest(path)
        if self._config is not None and manifest["config"] != self._fingerprint:
            raise CheckpointError(f"{path} was written by a run with another {self._config.name}")
        if path.name != f"checkpoint-{manifest['frames']:012d}":
            raise CheckpointError(f"{path} is damaged: {MANIFEST} is that of frame {manifest['frames']}")
        files, found = manifest["files"], set(_files(path))
        for name, record in files.items():
            if name not in found:
                raise CheckpointError(f"{path} is damaged: {name} is missing")
            found.remove(name)
            size = (path / name).stat().st_size
            if size != record["bytes"]:
                raise CheckpointError(
                    f"{path} is damaged: {name} has {size} bytes in place of {record['bytes']}"
                )
            if _record(path / name) != record:
                raise CheckpointError(f"{path} is damaged: the content of {name} has changed")
        if found:
            raise CheckpointError(f"{path} holds a file that is not its own: {min(found)}")
        return manifest

    def load(self, components: Mapping[str, Any]) -> Path | None:
        """Restore components from the newest checkpoint that is whole, and return its path.

        Returns:
            The path; None if there is no checkpoint at all.

        Raises:
            CheckpointError: if no checkpoint is whole, or if it does not fit the components.
        """
        if (path := self.intact()) is not None:
            self.restore(path, components)
            kept = sorted(other for other in self._candidates() if other < path)
            self._good = [*kept, path]
        return path

    @staticmethod
    def restore(path: Path, components: Mapping[str, Any]) -> None:
        """Restore components from a checkpoint that has been verified.

        Raises:
            CheckpointError: if a component is missing or does not fit.
        """
        for name, component in components.items():
            if not hasattr(component, "load_state_dict"):
                continue
            file = path / f"{name}.safetensors"
            if not file.is_file():
                raise CheckpointError(f"{path} does not hold {name}")
            try:
                component.load_state_dict(read_state(file))
            except OSError:
                raise
            except Exception as error:  # a component may raise anything for a state of another shape
                reason = " ".join(str(error).split())
                raise CheckpointError(f"{file} does not fit {name}: {reason}") from error

    def clean(self) -> None:
        """Remove what killed processes left behind, and name what is not a checkpoint.

        Only the process that writes checkpoints may call this.
        """
        for path in sorted(self.directory.glob("*")):
            left = next((mark for mark in (_STAGE, _OLD) if path.name.startswith(mark)), None)
            if left is not None:
                whole = self.directory / path.name.removeprefix(left)
                if left == _OLD and not whole.exists():
                    path.rename(whole)  # killed between two renames
                    continue
                _remove(path)
                self._say(f"removed {path}, which an interrupted process left behind")
            elif not _NAME.fullmatch(path.name):
                self._say(f"{path} is not a checkpoint and is ignored")

    def _candidates(self) -> Iterator[Path]:
        for path in self.directory.glob("checkpoint-*"):
            if _NAME.fullmatch(path.name):
                yield path


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it holds no {MANIFEST}")
    try:
        manifest = json.loads(file.read_bytes())
        if (manifest["format"], manifest["version"]) != (_FORMAT, _VERSION):
            raise CheckpointError(
                f"{path} has the format {manifest['format']!r}, version {manifest['version']!r}, but this "
                f"version of safe_components reads {_FORMAT!r}, version {_VERSION}"
            )
        kinds: dict[str, Any] = {"frames": int, "config": (str, type(None)), "files": dict}
        if not all(isinstance(manifest[key], kind) for key, kind in kinds.items()):
            raise TypeError("an entry has another type")
        if not all({"bytes", "sha256"} == record.keys() for record in manifest["files"].values()):
            raise TypeError("a file's record has other entries")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {MANIFEST} cannot be read ({error!r})") from None
    return dict(manifest)


def _files(directory: Path) -> list[str]:
    """Return every file below a checkpoint but its manifest, by its path from there."""
    names = [file.relative_to(directory).as_posix() for file in directory.rglob("*") if not file.is_dir()]
    return sorted(name for name in names if name != MANIFEST)


def _record(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists() or path.is_symlink():
        os.unlink(path)
