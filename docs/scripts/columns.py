"""Columns of several runs' metrics, in one CSV file that the documentation keeps."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

DOCS = Path(__file__).parents[1]


def write_columns(
    path: Path,
    names: Sequence[str],
    columns: Sequence[str],
    runs: Iterable[tuple[Sequence[str], Mapping[str, np.ndarray]]],
) -> None:
    """Write the rows of all runs, with five significant digits.

    Args:
        path: file to write.
        names: header of the columns that name a run, such as ``variant`` and ``seed``.
        columns: metrics that are written.
        runs: the values of ``names`` and the metrics of each run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow([*names, *columns])
        for run, metrics in runs:
            for row in zip(*(metrics[column] for column in columns), strict=True):
                out.writerow([*run, *(f"{number:.5g}" for number in row)])
