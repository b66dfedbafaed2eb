"""The settings every recipe shares, read from the command line or from the run being resumed."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import tyro
import yaml

from safe_components.training.settings import settings_arguments

__all__ = ["CONFIG_FILE", "EnvConfig", "RunConfig", "load_config", "parse_config", "validate_run_config"]

CONFIG_FILE = "config.yaml"

# A resumed run may be given more frames, another device or other places to report to; any other
# difference would make it a different experiment under the old name.
_MAY_CHANGE = (
    "total_frames",
    "device",
    "execution",
    "resume",
    "run_dir",
    "loggers",
    "progress",
    "threads",
    "traceback",
)


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The environment; the fields are the arguments of ``safe_components.envs.make_env``."""

    id: str = "SafetyPointCircle1-v0"
    """a Safety-Gymnasium id, a Gymnasium id whose info holds ``cost``, or ``PointCircle``"""
    num_envs: int = 10
    """environments stepped together, in all processes"""
    num_workers: int = 1
    """processes they are spread over"""
    frame_skip: int = 2
    """environment steps per action; rewards and costs are summed"""
    max_episode_steps: int | None = None
    """episode length; None keeps the environment's own"""
    cost_keys: tuple[str, ...] = ("cost",)
    """entries of the environment's info that are the cost signals"""

    @property
    def file_name(self) -> str:
        """The id as part of a file's name: without the slashes and colons that Gymnasium allows.

        Example:
            >>> EnvConfig(id="my_package:My/Task-v0").file_name
            'my_package-My-Task-v0'
        """
        return re.sub(r"[^\w.-]+", "-", self.id)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What to train on, for how long, and where the results go. Recipes add their own fields."""

    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    seed: int = 0
    """of the environments, networks and samples"""
    total_frames: int = 100_000
    """environment steps of the whole run"""
    cost_limit: tuple[float, ...] = (25.0,)
    """largest expected cost of an episode (undiscounted sum), one per cost signal"""
    device: str = "cpu"
    """of the networks and the buffer: cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """PyTorch's CPU threads: these networks are small, and a second seed makes better use of a core"""
    run_dir: Path | None = None
    """where results go; None makes a new runs/<recipe>-<env>-seed<seed>-<time>"""
    settings: str | None = None
    """a YAML file of settings, or the name of one in recipes/settings; flags given beside it win"""
    resume: Path | None = None
    """a run directory to continue; its configuration is used"""
    log_interval: int = 5_000
    """frames per iteration, that is per row of metrics.csv"""
    eval_interval: int = 25_000
    """frames between evaluations with the deterministic policy; 0 turns them off"""
    eval_episodes: int = 10
    """episodes per evaluation"""
    checkpoint_interval: int = 25_000
    """frames between checkpoints: what a killed run loses at most"""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """where metrics go besides metrics.csv"""
    progress: bool = True
    """show a progress bar"""
    traceback: bool = False
    """show where an error came from instead of one line"""


C = TypeVar("C", bound=RunConfig)


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _from_plain(default: Any, plain: Any, where: str) -> Any:
    """Rebuild ``default``'s type from YAML; ``default`` supplies the nested dataclasses."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        names = {field.name for field in dataclasses.fields(default)}
        if unknown := set(plain) - names:
            raise ValueError(f"{where} has settings this recipe does not know: {sorted(unknown)}")
        return dataclasses.replace(
            default,
            **{key: _from_plain(getattr(default, key), value, where) for key, value in plain.items()},
        )
    return tuple(plain) if isinstance(plain, list) else plain


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain numbers, strings and lists, as ``config.yaml`` holds it."""
    return _to_plain(config)


def load_config(config_type: type[C], run_dir: Path) -> C:
    """The configuration a run was started with.

    Raises:
        FileNotFoundError: if ``run_dir`` holds no ``config.yaml``.
        ValueError: if the run belongs to another recipe.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} is not a run directory: it holds no {CONFIG_FILE}")
    plain = yaml.safe_load(path.read_text())["config"]
    config = _from_plain(config_type(), plain, str(path))
    return dataclasses.replace(config, run_dir=run_dir, resume=run_dir)


def parse_config(config_type: type[C], arguments: Sequence[str] | None = None) -> C:
    """Command-line arguments as a configuration; with ``--resume DIR``, the one saved in DIR.

    With ``--settings NAME`` a file's options (`settings_arguments`) take the place of the recipe's defaults.
    Flags given beside ``--resume`` may change only how long the run goes on, where it computes and
    where it reports: ``--total-frames``, ``--device``, ``--threads``, ``--loggers``, ``--progress``.

    Raises:
        SystemExit: with one line that names the setting, if one is out of range, if the directory
            to resume is not a run of this recipe, or if a flag contradicts the saved configuration.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        resumed, settings = _value_of("--resume", arguments), _value_of("--settings", arguments)
        if resumed is None:
            default = config_type() if settings is None else _with_settings(config_type, settings)
            config = tyro.cli(config_type, args=arguments, default=default)
        else:
            run_dir = Path(resumed)
            saved = load_config(config_type, run_dir)
            config = tyro.cli(config_type, args=arguments, default=saved)
            old, new = config_to_dict(saved), config_to_dict(config)
            changed = [key for key in old if key not in _MAY_CHANGE and old[key] != new[key]]
            if changed:
                said = "; ".join(f"{key}: saved {old[key]}, now {new[key]}" for key in changed)
                raise ValueError(
                    f"{run_dir} was started with another configuration ({said}); "
                    "drop these flags, or start a new run without --resume"
                )
        validate_run_config(config)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    return config


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What a command line gives for a flag; None if it does not, or says ``None``."""
    value = None
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return None if value == "None" else value


def _with_settings(config_type: type[C], settings: str) -> C:
    """The configuration that a file of settings makes of the defaults."""
    arguments = settings_arguments(config_type, settings)
    try:
        return tyro.cli(config_type, args=arguments)
    except SystemExit:  # tyro has explained it
        raise SystemExit(f"error: settings {settings!r} say {shlex.join(arguments)}") from None


def validate_run_config(config: RunConfig) -> None:
    """Check the shared settings.

    Raises:
        ValueError: naming the setting, its value and the allowed range.
    """
    at_least_one = {
        "total_frames": config.total_frames,
        "log_interval": config.log_interval,
        "checkpoint_interval": config.checkpoint_interval,
        "threads": config.threads,
        "env.num_envs": config.env.num_envs,
        "env.num_workers": config.env.num_workers,
        "env.frame_skip": config.env.frame_skip,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    if config.eval_interval < 0 or (config.eval_interval and config.eval_episodes < 1):
        raise ValueError(
            f"eval_interval is {config.eval_interval} and eval_episodes {config.eval_episodes}: "
            "evaluate at least one episode, or set eval_interval to 0"
        )
    device = torch.device(config.device)
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(
            f"device is {config.device}, but PyTorch {torch.__version__} finds {found} CUDA devices here; "
            "use --device cpu, or install a CUDA build"
        )
    for limit in config.cost_limit:
        if not 0 <= limit < float("inf"):
            raise ValueError(f"cost_limit is {limit}, must be finite and not negative")
