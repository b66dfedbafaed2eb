"""Rows of metrics in a CSV file that is complete at any time, and in TorchRL's loggers."""

from __future__ import annotations

import csv
import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl.record.loggers import get_logger

__all__ = ["MetricsWriter"]

_SCALAR = (bool, int, float, str)


class MetricsWriter:
    """A writer of rows to ``metrics.csv`` and to the chosen loggers.

    The columns are those of all rows so far. A row with a new column causes the file to be rewritten.

    Args:
        directory: directory of the run.
        loggers: any of "tensorboard", "wandb", "mlflow" (TorchRL's loggers).
        keep_until: number of frames after which existing rows are dropped.
        expected: number of rows up to there. If the file holds another number, it was damaged: it is kept
            under another name, and the rows that can be read are continued. None checks nothing.
        stopped_at: frames of the checkpoint from which the run is resumed, which collects later frames again.
            A row from ``keep_until`` to there was only written because the run stopped.
        keep_stop: whether that row is kept because the run collects no more frames.
        say: function that is told about rows that are missing, damaged or dropped.
        file_name: name of the file in the directory.

    Raises:
        ImportError: if a logger's package is not installed; the message names the extra.
    """

    def __init__(
        self,
        directory: Path,
        loggers: Sequence[str] = (),
        keep_until: float = math.inf,
        expected: int | None = None,
        say: Callable[[str], object] = print,
        file_name: str = "metrics.csv",
        *,
        stopped_at: float = 0.0,
        keep_stop: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / file_name
        self._loggers: dict[str, Any] = {}
        for name in loggers:
            try:
                self._loggers[name] = get_logger(name, str(directory / name), directory.name)
            except ImportError as error:
                raise ImportError(
                    f"the {name} logger is not installed: pip install 'safe_components[{name}]'"
                ) from error
        self._columns: list[str] = []
        self._continue(keep_until, expected, max(stopped_at, keep_until), keep_stop, say)
        self._file = self.path.open("a", newline="", encoding="utf-8")

    def _continue(
        self,
        frames: float,
        expected: int | None,
        stopped_at: float,
        keep_stop: bool,
        say: Callable[[str], object],
    ) -> None:
        """Keep the rows up to ``frames``, and tell about all other rows and about those that are missing."""
        if not self.path.is_file():
            if expected:
                say(f"{self.path} is missing: its {expected} rows up to frame {frames:g} are lost")
            return
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            table = list(csv.DictReader(file))
        whole = [row for row in table if _is_whole(row)]
        kept = [row for row in whole if float(row["frames"]) <= frames]
        of_stop = [row for row in whole if frames < float(row["frames"]) <= stopped_at]
        # If the process was killed while writing, the last row may be cut short.
        torn = sum(not _is_whole(row) for row in table[:-1])
        if torn or (expected is not None and len(kept) != expected):
            copy = _free_name(self.path.with_name(f"{self.path.stem}.damaged.csv"))
            shutil.copyfile(self.path, copy)
            of = "" if expected is None else f" of {expected}"
            say(
                f"{self.path} is damaged: {len(kept)}{of} rows up to frame {frames:g} can be read and are "
                f"continued; the damaged file is kept as {copy.name}"
            )
        else:
            if of_stop and not keep_stop:
                say(
                    f"the last row of {self.path} is taken back: it was only written because the run "
                    f"stopped at frame {stopped_at:g}"
                )
            if later := len(whole) - len(kept) - len(of_stop):
                rows = f"{later} row{'s' if later > 1 else ''} of {self.path} after frame {stopped_at:g}"
                say(f"{rows} dropped: these frames are collected again")
        self._rewrite(kept + (of_stop if keep_stop else []))

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        self._columns = list(dict.fromkeys([*(rows[0] if rows else ()), *self._columns]))
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, self._columns, restval="")
            if self._columns:
                out.writeheader()
            out.writerows(rows)
        partial.replace(self.path)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Give the configuration to W&B, and to TensorBoard as hyperparameters.

        Args:
            config: nested plain data, from `config_to_dict`.
        """
        if (wandb := self._loggers.get("wandb")) is not None:
            wandb.log_hparams(dict(config))
        if (tensorboard := self._loggers.get("tensorboard")) is not None:
            flat = {
                path: value if isinstance(value, _SCALAR) else str(value) for path, value in _flat(config)
            }
            # "." keeps them in the directory of the metrics; TorchRL's call would begin another run.
            tensorboard.experiment.add_hparams(flat, {}, run_name=".")

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row, which must hold ``frames``, and pass it to the loggers.

        Raises:
            OSError: if the file cannot be written, for example because the disk is full.
        """
        try:
            self._append(row)
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error
        for logger in self._loggers.values():
            for key, value in row.items():
                if not math.isnan(value):
                    logger.log_scalar(key, value, step=int(row["frames"]))

    def _append(self, row: Mapping[str, float]) -> None:
        if new := [key for key in row if key not in self._columns]:
            self._file.close()
            with self.path.open(newline="", encoding="utf-8") as file:
                before = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(before)
            self._file = self.path.open("a", newline="", encoding="utf-8")
        cells = {key: _cell(value) for key, value in row.items()}
        csv.DictWriter(self._file, self._columns, restval="").writerow(cells)
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file and the loggers."""
        try:
            self._file.close()
        finally:
            for logger in self._loggers.values():
                if hasattr(logger.experiment, "close"):
                    logger.experiment.close()


def _cell(value: float) -> str:
    """Return a number as text: whole numbers, such as frames, in full."""
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.8g}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_whole(row: Mapping[str | None, Any]) -> bool:
    """Return whether every cell of a row is a number or empty, and ``frames`` is a number."""
    if None in row or None in row.values() or not row.get("frames"):
        return False
    try:
        return all(cell == "" or math.isfinite(float(cell)) for cell in row.values())
    except ValueError:
        return False


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())
