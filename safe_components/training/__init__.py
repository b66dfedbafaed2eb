"""What every recipe shares and no algorithm owns: run directory, logging, checkpoint, evaluation."""

from safe_components.training.averages import Averages, EpisodeStatistics, episode_summary
from safe_components.training.config import (
    EnvConfig,
    RunConfig,
    load_config,
    parse_config,
    validate_run_config,
)
from safe_components.training.curves import plot_curves, read_metrics
from safe_components.training.evaluation import evaluate
from safe_components.training.guards import require_finite
from safe_components.training.interrupt import StopRequest, workers_ignore_interrupt
from safe_components.training.launch import launch
from safe_components.training.metrics import MetricsWriter
from safe_components.training.normalise import fit_observation_norm, observation_norm, scale_steps
from safe_components.training.run import Run

__all__ = [
    "Averages",
    "EnvConfig",
    "EpisodeStatistics",
    "MetricsWriter",
    "Run",
    "RunConfig",
    "StopRequest",
    "episode_summary",
    "evaluate",
    "fit_observation_norm",
    "launch",
    "load_config",
    "observation_norm",
    "parse_config",
    "plot_curves",
    "read_metrics",
    "require_finite",
    "scale_steps",
    "validate_run_config",
    "workers_ignore_interrupt",
]
