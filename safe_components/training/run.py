"""A run, with its directory, metrics, checkpoints and progress bar."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import math
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import yaml
from torchrl.checkpoint import GlobalRNGState
from tqdm import tqdm

from safe_components.policies import policy_description
from safe_components.training.checkpoint import CheckpointError, Checkpoints
from safe_components.training.config import CONFIG_FILE, LAYOUT, config_to_dict
from safe_components.training.curves import plot_curves, plot_diagnosis, read_metrics
from safe_components.training.deploy import PolicyFile
from safe_components.training.interrupt import StopRequest
from safe_components.training.metrics import MetricsWriter
from safe_components.training.options import RecipeConfig, cost_suffixes
from safe_components.training.stopwatch import Stopwatch

__all__ = ["EPISODES_FILE", "Run"]

EPISODES_FILE = "episodes.csv"

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
    rows: int = 0  # those that a resumed run keeps, and the frames of the last one
    row_frames: int = 0

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in self.state_dict().items():
            setattr(self, name, type(value)(state[name]))


class Run:
    """A run directory, which this class creates or continues and updates during training.

    The directory holds:

    - ``config.yaml``: the settings and the package versions.
    - ``metrics.csv``: one row per iteration.
    - ``episodes.csv``: one row per training episode.
    - ``checkpoint/``: the two newest checkpoints (see `Checkpoints`).
    - ``curves.png``: the learning curves; CVPO adds ``diagnosis.png`` (docs/diagnosis.md).
    - one directory per logger.

    A run is a context. At a normal end, and after Ctrl-C, it saves a checkpoint and draws the curves. After
    an error it keeps the last good checkpoint and draws the curves.

    Args:
        config: configuration of the run. ``config.run.resume`` is the directory to continue, and otherwise
            ``config.run.run_dir`` is the directory to create. If both are None, a new directory below
            ``runs`` is created.
        **components: contents of a checkpoint by name: modules, optimizers, buffers, or any other object with
            ``state_dict`` and ``load_state_dict``. The states of the random generators, the frames, the
            updates and the wall time are added. An object with ``dump(path)`` instead writes files of its
            own, which are part of a checkpoint but are not loaded.

    Attributes:
        watch: stopwatch that divides the time between two rows among the phases ``collecting``,
            ``evaluating``, ``saving``, ``logging`` and ``learning`` (the rest), as in
            ``with run.watch("evaluating"): ...``. The run itself times saving and logging.

    Raises:
        FileExistsError: if ``config.run.run_dir`` already holds a run.
        FileNotFoundError: if ``config.run.resume`` holds no run.
        BlockingIOError: if another process uses the directory.
        ValueError: if the run to continue has already collected more frames than ``config.run.total_frames``.
        CheckpointError: if a run is continued without a checkpoint that is whole and fits the components.

    Example:
        >>> import tempfile, torch
        >>> from safe_components.training import RunConfig
        >>> directory = Path(tempfile.mkdtemp()) / "run"
        >>> settings = RunConfig(run_dir=directory, total_frames=100, loggers=(), progress=False)
        >>> config = RecipeConfig(run=settings)
        >>> with Run(config, model=torch.nn.Linear(2, 1)) as run:
        ...     run.advance(100)
        ...     run.log({"episode_reward": 1.0, "episode_cost": 0.0})
        >>> sorted(path.name for path in directory.iterdir())
        ['checkpoint', 'config.yaml', 'curves.png', 'episodes.csv', 'metrics.csv']
    """

    def __init__(self, config: RecipeConfig, **components: Any) -> None:
        self.config = config
        self._clock, self._rng = _Clock(), GlobalRNGState()
        if {"policy", "norm"} <= components.keys():
            components |= _policy_file(config, **components)
        self._components = {"clock": self._clock, "rng": self._rng, **components}
        self._saved_at = -1
        self._loaded: Path | None = None
        self._stop, self._exits = StopRequest(), ExitStack()
        settings = config.run
        resumed = settings.resume and _existing_directory(settings.resume)
        with resumed or _new_directory(config) as (directory, self._lock):
            self.directory = directory
            self._checkpoints = Checkpoints(directory / "checkpoint", config=directory / CONFIG_FILE)
            self._checkpoints.clean()
            if settings.resume is not None:
                self._load()
            elif settings.warm_start is not None:
                self._start_from(settings.warm_start)
            self._metrics = MetricsWriter(
                directory,
                settings.loggers,
                keep_until=self._clock.row_frames,
                expected=self._clock.rows,
                stopped_at=self.frames,
                keep_stop=self.finished,
            )
            self._metrics.log_config(config_to_dict(config))
            self._episodes = MetricsWriter(directory, keep_until=self.frames, file_name=EPISODES_FILE)
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

    def _load(self) -> None:
        self._loaded = self._checkpoints.load(self._components)
        if self._loaded is None:
            interval = self.config.run.checkpoint_interval
            raise CheckpointError(
                f"{self.directory} holds no checkpoint: the run ended before its first one (one is written "
                f"every {interval} frames); start it again with --config {self.directory / CONFIG_FILE}"
            )
        if self.frames > (total := self.config.run.total_frames):
            raise ValueError(
                f"total_frames is {total}, but {self.directory} has already collected {self.frames} frames: "
                "pass --total-frames with at least as many"
            )
        self._saved_at = self.frames

    def _start_from(self, directory: Path) -> None:
        """Take the policy and the scaling of its observations from another run."""
        if not (directory / CONFIG_FILE).is_file():
            raise FileNotFoundError(
                f"warm_start: {directory} is not a run directory, it holds no {CONFIG_FILE}"
            )
        path = Checkpoints(directory / "checkpoint", config=directory / CONFIG_FILE).intact()
        if path is None:
            raise FileNotFoundError(f"warm_start: {directory} holds no checkpoint")
        if missing := [name for name in ("policy", "norm", "learner") if name not in self._components]:
            raise ValueError(f"warm_start needs Run(..., {', '.join(f'{name}=...' for name in missing)})")
        self._checkpoints.restore(path, {name: self._components[name] for name in ("policy", "norm")})
        self._components["learner"].follow_policy()

    def add(self, name: str, component: Any) -> bool:
        """Add a component to the checkpoints; restore it if the run was resumed.

        Returns:
            Whether it was restored.
        """
        self._components[name] = component
        if self._loaded is None:
            return False
        self._checkpoints.restore(self._loaded, {name: component})
        return True

    def restore_random_state(self) -> None:
        """Set the random generators as they were at the checkpoint from which the run was resumed."""
        if self._loaded is not None:
            self._checkpoints.restore(self._loaded, {"rng": self._rng})

    @property
    def frames(self) -> int:
        """Number of environment frames so far, including those before a resume."""
        return self._clock.frames

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return self._clock.updates

    @property
    def row_frames(self) -> int:
        """Number of frames at the last row of metrics that a resumed run keeps."""
        return self._clock.row_frames

    @property
    def progress(self) -> float:
        """Share of ``total_frames`` that has been collected."""
        return self.frames / self.config.run.total_frames

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
        """Register ``callback`` to be called when the context ends, after the last checkpoint."""
        self._exits.callback(callback)

    def due(self, interval: int, since: int) -> bool:
        """Tell whether a multiple of ``interval`` frames was reached after ``since`` frames; false for 0."""
        return interval > 0 and self.frames // interval > since // interval

    def log(self, metrics: Mapping[str, float], shown: tuple[str, ...] = (), *, extra: bool = False) -> None:
        """Write a row of the run's progress, the time of each phase since the last row, and ``metrics``.

        The row also holds ``frames``, ``updates``, ``wall_seconds``, ``frames_per_second`` and the phases of
        :attr:`watch` as ``seconds_<phase>``. The time to write this row counts toward the next row.

        Args:
            metrics: numbers by name; NaN is written as an empty cell.
            shown: names of the metrics that the progress bar shows.
            extra: whether the row is only due because the run stops here. A resumed run drops it, so its rows
                are those of a run that was never stopped.
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
            if not extra:
                self._clock.rows, self._clock.row_frames = self._clock.rows + 1, self.frames
            known = {key: metrics[key] for key in shown if not math.isnan(metrics.get(key, math.nan))}
            self._bar.set_postfix({key.removeprefix("episode_"): f"{known[key]:.3g}" for key in known})

    def log_episode(self, episode: Mapping[str, float]) -> None:
        """Write a row of ``episodes.csv``, with the ``frames`` at which the episode ended."""
        self._episodes.write(episode)

    def save(self) -> Path:
        """Write a checkpoint of every component and return its path.

        Raises:
            OSError: if it cannot be written. The checkpoint before it is kept.
        """
        self._clock.wall_seconds = time.monotonic() - self._started
        with self.watch("saving"):
            path = self._checkpoints.save(self.frames, self._components)
        self._saved_at = self.frames
        return path

    def draw(self) -> None:
        """Draw ``curves.png`` from the rows written so far, and ``diagnosis.png`` if they hold one."""
        path, limits = self._metrics.path, self.config.budget.cost_limit
        title = f"{self.config.env.id}, seed {self.config.run.seed}"
        if path.stat().st_size:
            rows, names = read_metrics(path), cost_suffixes(self.config.env.cost_keys, len(limits))
            plot_curves({"run": rows}, limits, self.directory / "curves.png", title, names)
            if "promised_reward" in rows:
                plot_diagnosis(rows, limits, self.directory / "diagnosis.png", title, names)

    def __enter__(self) -> Run:
        self._stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._exits:  # the state of the environments is saved before they are closed
                if error is None and self.frames != self._saved_at:
                    self.save()
        except BaseException as late:
            error = late
            raise
        finally:
            self._close(error)

    def _close(self, error: BaseException | None) -> None:
        """Draw the curves and close the files; tell where the run ended if an error ended it."""
        failed = []
        for step in (self.draw, self._bar.close, self._metrics.close, self._episodes.close):
            try:
                step()
            except Exception as late:  # after an error, such as a full disk, the first error is what counts
                failed.append(late)
        self._stop.__exit__(None, None, None)
        self._lock.close()
        if error is not None:
            kept = self._checkpoints.latest()
            print(
                f"stopped by {type(error).__name__} at {self.frames} frames and {self.updates} updates; "
                + (f"the last checkpoint is kept: {kept}" if kept else "no checkpoint had been written yet")
            )
        elif failed:
            raise failed[0]


def _policy_file(config: RecipeConfig, policy: Any, norm: Any, **_: Any) -> dict[str, PolicyFile]:
    """Return the component that writes the file of the policy; none, with a warning, if it cannot be made."""
    if getattr(config, "encoder", None) is not None:  # the file of a policy holds no encoder
        return {}
    if policy_description(policy) is None:
        warnings.warn(
            "checkpoints will hold no policy that load_policy and evaluate can read: decorate the function "
            "that makes it with safe_components.policies.policy_builder",
            stacklevel=3,
        )
        return {}
    plain = config_to_dict(config)
    env = plain["env"] | {"frame_skip": config.env.steps_per_action}
    about = {"recipe": config.recipe, "env": env, "cost_limit": plain["budget"]["cost_limit"]}
    return {"deployable": PolicyFile(policy, norm, about)}


@contextmanager
def _existing_directory(directory: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Lock the directory of a run, and release it if the run cannot start."""
    lock = _locked(directory)
    try:
        yield directory, lock
    except BaseException:
        lock.close()
        raise


def _locked(directory: Path) -> BinaryIO:
    """Return the open and locked ``config.yaml`` of a run; closing it, or the end of the process, unlocks it.

    Raises:
        BlockingIOError: if it is locked.
    """
    file = (directory / CONFIG_FILE).open("r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BlockingIOError(
            f"{directory} is in use: another process trains there; wait for its end, or stop it first"
        ) from None
    return file


@contextmanager
def _new_directory(config: RecipeConfig) -> Iterator[tuple[Path, BinaryIO]]:
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
        with _existing_directory(directory) as made:
            yield made
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
    except (FileExistsError, NotADirectoryError):
        file = next((path for path in (directory, *directory.parents) if path.is_file()), None)
        if file is not None:
            raise NotADirectoryError(f"the run directory cannot be {directory}: {file} is a file") from None
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
