"""Rows of metrics: a CSV file that is always complete, and TorchRL's loggers beside it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchrl.record.loggers import get_logger

__all__ = ["MetricsWriter"]


class MetricsWriter:
    """Write one row per iteration to ``metrics.csv`` and to the loggers chosen.

    The first row fixes the columns. A later row may leave columns out (empty cells), not add any.

    Args:
        directory: of the run.
        loggers: any of "tensorboard", "wandb", "mlflow" (TorchRL's loggers).
        keep_until: rows past this number of frames are dropped first; a resumed run passes the
            frames of its checkpoint, since the rows after it are collected again.

    Raises:
        ValueError: from :meth:`write` if a row brings a column the file does not have.
        ImportError: if a logger's package is not installed; the message names the extra.
    """

    def __init__(self, directory: Path, loggers: Sequence[str] = (), keep_until: float = math.inf) -> None:
        self.path = directory / "metrics.csv"
        self._columns: list[str] = []
        if self.path.is_file():
            self._keep(keep_until)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._loggers = []
        for name in loggers:
            try:
                self._loggers.append(get_logger(name, str(directory / name), directory.name))
            except ImportError as error:
                raise ImportError(
                    f"the {name} logger is not installed: pip install 'safe_components[{name}]'"
                ) from error

    def _keep(self, frames: float) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if not rows:
            return
        self._columns = rows[0]
        at = self._columns.index("frames")
        # A kill in mid-write may leave a last row cut short.
        kept = [row for row in rows[1:] if len(row) == len(rows[0]) and float(row[at]) <= frames]
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self._columns, *kept])
        partial.replace(self.path)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row, which must hold ``frames``, and hand it to the loggers."""
        out = csv.writer(self._file)
        if not self._columns:
            self._columns = list(row)
            out.writerow(self._columns)
        if unknown := set(row) - set(self._columns):
            raise ValueError(f"the columns of {self.path} are fixed by its first row; new: {sorted(unknown)}")
        out.writerow(
            ["" if math.isnan(row.get(key, math.nan)) else f"{row[key]:.8g}" for key in self._columns]
        )
        self._file.flush()
        for logger in self._loggers:
            for key, value in row.items():
                if not math.isnan(value):
                    logger.log_scalar(key, value, step=int(row["frames"]))

    def close(self) -> None:
        """Flush and close the file and the loggers."""
        self._file.close()
        for logger in self._loggers:
            if hasattr(logger.experiment, "close"):
                logger.experiment.close()
