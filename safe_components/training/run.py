"""A run: its directory, metrics, checkpoints and progress bar."""

from __future__ import annotations

import dataclasses
import itertools
import math
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState
from tqdm import tqdm

from safe_components.training.config import CONFIG_FILE, RunConfig, config_to_dict
from safe_components.training.curves import plot_curves
from safe_components.training.interrupt import StopRequest
from safe_components.training.metrics import MetricsWriter
from safe_components.training.stopwatch import Stopwatch

__all__ = ["Run"]

# MuJoCo's version changes the physics, the others the numbers.
_RECORDED = (
    "safe_components",
    "torch",
    "torchrl",
    "tensordict",
    "numpy",
    "scipy",
    "gymnasium",
    "mujoco",
    "safety-gymnasium",
)


@dataclasses.dataclass
class _Clock:
    """How far the run is; part of every checkpoint."""

    frames: int = 0
    updates: int = 0
    wall_seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.frames, self.updates = int(state["frames"]), int(state["updates"])
        self.wall_seconds = float(state["wall_seconds"])


class Run:
    """Create or continue a run directory, and keep it in order while the recipe trains.

    The directory holds ``config.yaml`` (settings and package versions), ``metrics.csv`` (one row per
    iteration), ``checkpoint/`` (the two newest, TorchRL's ``Checkpoint`` format, each written beside
    the last and renamed, so that a kill never leaves half a one), ``curves.png`` and one directory
    per logger. Used as a context: leaving it normally, or on Ctrl-C, saves a checkpoint and the
    curves; leaving it on an error keeps the last good checkpoint and draws the curves.

    Args:
        config: ``config.resume`` continues that directory, otherwise ``config.run_dir`` is made.
        name: of the recipe, for the directory's default name.
        **components: what a checkpoint holds, by name: modules, optimisers, buffers, anything with
            ``state_dict``. The random generators' states, frames, updates and wall time are added.

    Attributes:
        watch: shares out the time between two rows among the phases ``collecting``, ``evaluating``,
            ``saving``, ``logging`` and, for the rest, ``learning``: ``with run.watch("evaluating"): ...``.
            Saving and logging are timed here.

    Raises:
        FileExistsError: if ``config.run_dir`` already holds a run.
        FileNotFoundError: if ``config.resume`` holds no run.
        torchrl.checkpoint.CheckpointError: if a checkpoint does not fit the components.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp()) / "run"
        >>> config = RunConfig(run_dir=directory, total_frames=100, loggers=(), progress=False)
        >>> with Run(config, "demo", model=torch.nn.Linear(2, 1)) as run:
        ...     run.advance(100)
        ...     run.log({"episode_reward": 1.0, "episode_cost": 0.0})
        >>> sorted(path.name for path in directory.iterdir())
        ['checkpoint', 'config.yaml', 'curves.png', 'metrics.csv']
    """

    def __init__(self, config: RunConfig, name: str, **components: Any) -> None:
        self.config = config
        self._clock = _Clock()
        self._checkpoint = Checkpoint(clock=self._clock, rng=GlobalRNGState(), **components)
        self._saved_at = -1
        self._stop = StopRequest()
        resumed = config.resume and nullcontext(config.resume)
        with resumed or _new_directory(config, name) as directory:
            self.directory = directory
            # At least two checkpoints, so that the newest may be damaged by a full disk or a crash.
            self._rotation = CheckpointRotation(directory / "checkpoint", keep_last=2)
            if config.resume is not None and self._rotation.latest() is not None:
                device = torch.device(config.device)
                self._rotation.load_latest(
                    self._checkpoint, map_location=None if device.type == "cpu" else device
                )
                self._saved_at = self.frames
            self._metrics = MetricsWriter(directory, config.loggers, keep_until=self.frames)
        self._bar = tqdm(
            total=config.total_frames,
            initial=min(self.frames, config.total_frames),
            unit="frame",
            disable=not config.progress,
            dynamic_ncols=True,
        )
        self.watch = Stopwatch("learning", "collecting", "evaluating", "saving", "logging")
        self._started = time.monotonic() - self._clock.wall_seconds
        self._last = (self.frames, self._clock.wall_seconds)

    @property
    def frames(self) -> int:
        """Environment frames collected so far, those before a resume included."""
        return self._clock.frames

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self._clock.updates

    @property
    def finished(self) -> bool:
        """Whether the frames are used up or Ctrl-C was pressed."""
        return bool(self._stop) or self.frames >= self.config.total_frames

    def advance(self, frames: int) -> None:
        """Count frames just collected."""
        self._clock.frames += frames
        self._bar.update(frames)

    def count_update(self) -> None:
        """Count an update."""
        self._clock.updates += 1

    def due(self, interval: int, since: int) -> bool:
        """Whether a multiple of ``interval`` frames was passed after ``since`` frames; never for 0."""
        return interval > 0 and self.frames // interval > since // interval

    def log(self, metrics: Mapping[str, float], shown: tuple[str, ...] = ()) -> None:
        """Write a row: how far the run is, where the time since the last row went, and ``metrics``.

        ``frames``, ``updates``, ``wall_seconds``, ``frames_per_second`` and :attr:`watch`'s phases as
        ``seconds_<phase>``; what writing this row takes is part of the next.

        Args:
            metrics: numbers by name; NaN becomes an empty cell.
            shown: names of the metrics on the progress bar.
        """
        with self.watch("logging"):
            seconds = self.watch.pop()
            self._clock.wall_seconds = time.monotonic() - self._started
            before, then = self._last
            self._last = (self.frames, self._clock.wall_seconds)
            speed = (self.frames - before) / max(self._clock.wall_seconds - then, 1e-9)
            progress = {
                "frames": self.frames,
                "updates": self.updates,
                "wall_seconds": self._clock.wall_seconds,
                "frames_per_second": speed,
                **{f"seconds_{phase}": value for phase, value in sorted(seconds.items())},
            }
            self._metrics.write({**progress, **metrics})
            known = {key: metrics[key] for key in shown if not math.isnan(metrics.get(key, math.nan))}
            self._bar.set_postfix({key.removeprefix("episode_"): f"{known[key]:.3g}" for key in known})

    def save(self) -> Path:
        """Write a checkpoint of every component and return its path."""
        self._clock.wall_seconds = time.monotonic() - self._started
        self._saved_at = self.frames
        with self.watch("saving"):
            return self._rotation.save(self._checkpoint, step=self.frames)

    def draw(self) -> None:
        """Draw ``curves.png`` from the rows written so far."""
        if self._metrics.path.stat().st_size:
            plot_curves(
                [self._metrics.path],
                self.config.cost_limit,
                self.directory / "curves.png",
                title=f"{self.config.env.id}, seed {self.config.seed}",
            )

    def __enter__(self) -> Run:
        self._stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self.frames != self._saved_at:
                self.save()
            self.draw()
        finally:
            self._bar.close()
            self._metrics.close()
            self._stop.__exit__(kind, error, trace)
        if error is not None:
            kept = self._rotation.latest()
            print(
                f"stopped by {type(error).__name__}; "
                + (f"the last checkpoint is kept: {kept}" if kept else "no checkpoint had been written yet")
            )


@contextmanager
def _new_directory(config: RunConfig, name: str) -> Iterator[Path]:
    """Make a run's directory and its ``config.yaml``; both go again if the run cannot start.

    The file is created exclusively: of several processes that ask for one directory, one gets it.
    """
    document = yaml.safe_dump(_description(config, name), sort_keys=False)
    directory, is_new = _make_directory(config, name)
    path = directory / CONFIG_FILE
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise FileExistsError(
            f"{directory} already holds a run; continue it with --resume {directory}, "
            "or choose another --run-dir"
        ) from None
    try:
        with file:
            file.write(document)
        yield directory
    except BaseException:
        path.unlink()
        if is_new:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _make_directory(config: RunConfig, name: str) -> tuple[Path, bool]:
    """The directory, and whether it is new: ``config.run_dir`` may have existed, the default one may not."""
    if config.run_dir is not None:
        return config.run_dir, _is_made(config.run_dir)
    stem = f"{name}-{config.env.file_name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    candidates = (Path("runs") / directory for directory in itertools.chain([stem], numbered))
    return next(filter(_is_made, candidates)), True


def _is_made(directory: Path) -> bool:
    """Make a directory; false if it was there, also if another process has just made it."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _description(config: RunConfig, name: str) -> dict[str, Any]:
    """What ``config.yaml`` holds."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"recipe": name, "config": config_to_dict(config), "versions": versions}
