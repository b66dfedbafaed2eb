"""A run, with its directory, metrics, checkpoints and progress bar."""

from __future__ import annotations

import dataclasses
import itertools
import math
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState
from tqdm import tqdm

from safe_components.policies import policy_description
from safe_components.training.config import CONFIG_FILE, LAYOUT, config_to_dict
from safe_components.training.curves import plot_curves, plot_diagnosis, read_metrics
from safe_components.training.deploy import PolicyFile
from safe_components.training.interrupt import StopRequest
from safe_components.training.metrics import MetricsWriter
from safe_components.training.options import RecipeConfig
from safe_components.training.stopwatch import Stopwatch

__all__ = ["Run"]

# The version of MuJoCo changes the physics, and those of the other packages change the numbers.
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
    """The progress of a run, which is part of every checkpoint."""

    frames: int = 0
    updates: int = 0
    wall_seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.frames, self.updates = int(state["frames"]), int(state["updates"])
        self.wall_seconds = float(state["wall_seconds"])


class Run:
    """A run directory, which this class creates or continues and updates during training.

    The directory holds:

    - ``config.yaml``: the settings and the package versions.
    - ``metrics.csv``: one row per iteration.
    - ``checkpoint/``: the two newest checkpoints in TorchRL's ``Checkpoint`` format. Each is written under
      another name and then renamed, so a killed process never leaves half a checkpoint.
    - ``curves.png``: the learning curves; CVPO adds ``diagnosis.png`` (docs/diagnosis.md).
    - one directory per logger.

    A run is a context. At a normal end, and after Ctrl-C, it saves a checkpoint and draws the curves. After
    an error it keeps the last good checkpoint and draws the curves.

    Args:
        config: configuration of the run. ``config.run.resume`` is the directory to continue, and otherwise
            ``config.run.run_dir`` is the directory to create. If both are None, a new directory below
            ``runs`` is created.
        **components: contents of a checkpoint by name: modules, optimizers, buffers, or any other object with
            ``state_dict`` or ``dump``. The states of the random generators, the frames, the updates and the
            wall time are added.

    Attributes:
        watch: stopwatch that divides the time between two rows among the phases ``collecting``,
            ``evaluating``, ``saving``, ``logging`` and ``learning`` (the rest), as in
            ``with run.watch("evaluating"): ...``. The run itself times saving and logging.

    Raises:
        FileExistsError: if ``config.run.run_dir`` already holds a run.
        FileNotFoundError: if ``config.run.resume`` holds no run.
        torchrl.checkpoint.CheckpointError: if a checkpoint does not fit the components.

    Example:
        >>> import tempfile
        >>> from safe_components.training import RunConfig
        >>> directory = Path(tempfile.mkdtemp()) / "run"
        >>> settings = RunConfig(run_dir=directory, total_frames=100, loggers=(), progress=False)
        >>> config = RecipeConfig(run=settings)
        >>> with Run(config, model=torch.nn.Linear(2, 1)) as run:
        ...     run.advance(100)
        ...     run.log({"episode_reward": 1.0, "episode_cost": 0.0})
        >>> sorted(path.name for path in directory.iterdir())
        ['checkpoint', 'config.yaml', 'curves.png', 'metrics.csv']
    """

    def __init__(self, config: RecipeConfig, **components: Any) -> None:
        self.config = config
        self._clock = _Clock()
        if {"policy", "norm"} <= components.keys():
            components |= _policy_file(config, **components)
        self._checkpoint = Checkpoint(clock=self._clock, rng=GlobalRNGState(), **components)
        self._saved_at = -1
        self._stop, self._exits = StopRequest(), ExitStack()
        settings = config.run
        resumed = settings.resume and nullcontext(settings.resume)
        with resumed or _new_directory(config) as directory:
            self.directory = directory
            # Two checkpoints are kept, because a full disk or a crash may damage the newest.
            self._rotation = CheckpointRotation(directory / "checkpoint", keep_last=2)
            if settings.resume is not None and self._rotation.latest() is not None:
                device = torch.device(settings.device)
                self._rotation.load_latest(
                    self._checkpoint, map_location=None if device.type == "cpu" else device
                )
                self._saved_at = self.frames
            self._metrics = MetricsWriter(directory, settings.loggers, keep_until=self.frames)
        self._bar = tqdm(
            total=settings.total_frames,
            initial=min(self.frames, settings.total_frames),
            unit="frame",
            disable=not settings.progress,
            dynamic_ncols=True,
        )
        self.watch = Stopwatch("learning", "collecting", "evaluating", "saving", "logging")
        self._started = time.monotonic() - self._clock.wall_seconds
        self._last = (self.frames, self._clock.wall_seconds)

    @property
    def frames(self) -> int:
        """Number of environment frames so far, including those before a resume."""
        return self._clock.frames

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return self._clock.updates

    @property
    def finished(self) -> bool:
        """Whether all frames have been collected or a stop was requested (Ctrl-C)."""
        return bool(self._stop) or self.frames >= self.config.run.total_frames

    def advance(self, frames: int) -> None:
        """Add newly collected frames to the count."""
        self._clock.frames += frames
        self._bar.update(frames)

    def count_update(self) -> None:
        """Add one update to the count."""
        self._clock.updates += 1

    def on_exit(self, callback: Callable[[], object]) -> None:
        """Register ``callback`` to be called when the context ends, before anything is saved."""
        self._exits.callback(callback)

    def due(self, interval: int, since: int) -> bool:
        """Tell whether a multiple of ``interval`` frames was reached after ``since`` frames; false for 0."""
        return interval > 0 and self.frames // interval > since // interval

    def log(self, metrics: Mapping[str, float], shown: tuple[str, ...] = ()) -> None:
        """Write a row of the run's progress, the time of each phase since the last row, and ``metrics``.

        The row also holds ``frames``, ``updates``, ``wall_seconds``, ``frames_per_second`` and the phases of
        :attr:`watch` as ``seconds_<phase>``. The time to write this row counts toward the next row.

        Args:
            metrics: numbers by name; NaN is written as an empty cell.
            shown: names of the metrics that the progress bar shows.
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
            path: Path = self._rotation.save(self._checkpoint, step=self.frames)
            return path

    def draw(self) -> None:
        """Draw ``curves.png`` from the rows written so far, and ``diagnosis.png`` if they hold one."""
        path, limits = self._metrics.path, self.config.budget.cost_limit
        title = f"{self.config.env.id}, seed {self.config.run.seed}"
        if path.stat().st_size:
            plot_curves([path], limits, self.directory / "curves.png", title)
            if "promised_reward" in read_metrics(path):
                plot_diagnosis(path, limits, self.directory / "diagnosis.png", title)

    def __enter__(self) -> Run:
        self._stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()
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
                f"stopped by {type(error).__name__} at {self.frames} frames and {self.updates} updates; "
                + (f"the last checkpoint is kept: {kept}" if kept else "no checkpoint had been written yet")
            )


def _policy_file(config: RecipeConfig, policy: Any, norm: Any, **_: Any) -> dict[str, PolicyFile]:
    """Return the component that writes the file of the policy; none, with a warning, if it cannot be made."""
    if policy_description(policy) is None:
        warnings.warn(
            "checkpoints will hold no policy that load_policy and evaluate can read: decorate the function "
            "that makes it with safe_components.policies.policy_builder",
            stacklevel=3,
        )
        return {}
    plain = config_to_dict(config)
    about = {"recipe": config.recipe, "env": plain["env"], "cost_limit": plain["budget"]["cost_limit"]}
    return {"deployable": PolicyFile(policy, norm, about)}


@contextmanager
def _new_directory(config: RecipeConfig) -> Iterator[Path]:
    """Make a run's directory and its ``config.yaml``, and remove both if the run cannot start.

    The file is created exclusively, so only one of several processes can get the same directory.
    """
    document = yaml.safe_dump(_description(config), sort_keys=False)
    directory, is_new = _make_directory(config)
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


def _make_directory(config: RecipeConfig) -> tuple[Path, bool]:
    """Return the directory, and whether it is new.

    ``config.run.run_dir`` may exist already, whereas the default directory is always new.
    """
    run_dir = config.run.run_dir
    if run_dir is not None:
        return run_dir, _is_made(run_dir)
    stem = f"{config.recipe}-{config.env.file_name}-seed{config.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    candidates = (Path("runs") / directory for directory in itertools.chain([stem], numbered))
    return next(filter(_is_made, candidates)), True


def _is_made(directory: Path) -> bool:
    """Make a directory; return false if it exists, even if another process has just made it."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _description(config: RecipeConfig) -> dict[str, Any]:
    """Return the content of ``config.yaml``."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "recipe": config.recipe,
        "layout": LAYOUT,
        "config": config_to_dict(config),
        "versions": versions,
    }
