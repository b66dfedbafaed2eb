"""Rows of metrics in a CSV file that is complete at any time, and in TorchRL's loggers."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchrl.record.loggers import get_logger

__all__ = ["MetricsWriter"]


class MetricsWriter:
    """A writer of rows to ``metrics.csv`` and to the chosen loggers.

    The columns are those of all rows so far. A row with a new column causes the file to be rewritten.

    Args:
        directory: directory of the run.
        loggers: any of "tensorboard", "wandb", "mlflow" (TorchRL's loggers).
        keep_until: number of frames after which existing rows are dropped. A resumed run passes the frames of
            its checkpoint, because it collects the later frames again.

    Raises:
        ImportError: if a logger's package is not installed; the message names the extra.
    """

    def __init__(self, directory: Path, loggers: Sequence[str] = (), keep_until: float = math.inf) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.csv"
        self._loggers = []
        for name in loggers:
            try:
                self._loggers.append(get_logger(name, str(directory / name), directory.name))
            except ImportError as error:
                raise ImportError(
                    f"the {name} logger is not installed: pip install 'safe_components[{name}]'"
                ) from error
        self._columns: list[str] = []
        if self.path.is_file():
            self._keep(keep_until)
        self._file = self.path.open("a", newline="", encoding="utf-8")

    def _keep(self, frames: float) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        # If the process was killed while writing, the last row may be cut short. Its missing cells are None.
        whole = [row for row in table if None not in row.values()]
        self._rewrite([row for row in whole if float(row["frames"]) <= frames])

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        self._columns = list(dict.fromkeys([*(rows[0] if rows else ()), *self._columns]))
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, self._columns, restval="")
            if self._columns:
                out.writeheader()
            out.writerows(rows)
        partial.replace(self.path)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row, which must hold ``frames``, and pass it to the loggers."""
        if new := [key for key in row if key not in self._columns]:
            self._file.close()
            with self.path.open(newline="", encoding="utf-8") as file:
                before = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(before)
            self._file = self.path.open("a", newline="", encoding="utf-8")
        cells = {key: "" if math.isnan(value) else f"{value:.8g}" for key, value in row.items()}
        csv.DictWriter(self._file, self._columns, restval="").writerow(cells)
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
