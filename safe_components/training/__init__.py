"""What every recipe shares and no algorithm owns: run directory, logging, checkpoint, evaluation."""

from safe_components.training.averages import Averages, EpisodeStatistics, episode_summary
from safe_components.training.comparison import over_seeds, plot_comparison
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
from safe_components.training.launch import explained_errors, launch
from safe_components.training.metrics import MetricsWriter
from safe_components.training.normalise import fit_observation_norm, observation_norm, scale_steps
from safe_components.training.run import Run
from safe_components.training.statistics import (
    Summary,
    episode_mean,
    frames_to_best,
    frames_to_safe,
    last_frames,
    rolling_mean,
    summarise,
)
from safe_components.training.stopwatch import Stopwatch

__all__ = [
    "Averages",
    "EnvConfig",
    "EpisodeStatistics",
    "MetricsWriter",
    "Run",
    "RunConfig",
    "StopRequest",
    "Stopwatch",
    "Summary",
    "episode_mean",
    "episode_summary",
    "evaluate",
    "explained_errors",
    "fit_observation_norm",
    "frames_to_best",
    "frames_to_safe",
    "last_frames",
    "launch",
    "load_config",
    "observation_norm",
    "over_seeds",
    "parse_config",
    "plot_comparison",
    "plot_curves",
    "read_metrics",
    "require_finite",
    "rolling_mean",
    "scale_steps",
    "summarise",
    "validate_run_config",
    "workers_ignore_interrupt",
]
