"""Training of one run: its configuration, environments, loop, run directory and evaluation."""

from safe_components.training import options
from safe_components.training.annealing import anneal, annealed_group
from safe_components.training.averages import Averages, EpisodeStatistics, episode_summary
from safe_components.training.checkpoint import CheckpointError, Checkpoints
from safe_components.training.command_line import parse_config
from safe_components.training.config import (
    config_to_dict,
    leaves,
    load_config,
    overlay,
    validate,
    with_run,
    with_value,
)
from safe_components.training.control import CostControl, RangeControl
from safe_components.training.curves import plot_curves, plot_diagnosis, read_metrics, with_gaps
from safe_components.training.deploy import export_policy, load_policy, save_policy
from safe_components.training.diagnosis import Diagnosis
from safe_components.training.evaluation import evaluate
from safe_components.training.execution import ExecutionConfig, GraphedUpdate, Training, execute, run_alone
from safe_components.training.exploration import DeterministicEpisodes, with_noise
from safe_components.training.graph import GraphedCall
from safe_components.training.guards import require_finite
from safe_components.training.interrupt import StopRequest, workers_ignore_interrupt
from safe_components.training.launch import explained_errors, launch
from safe_components.training.learner import Learner
from safe_components.training.loop import Loop
from safe_components.training.memory import (
    available_bytes,
    memory_needed,
    require_memory,
    require_memory_together,
)
from safe_components.training.metrics import MetricsWriter
from safe_components.training.normalize import fit_observation_norm, observation_norm, scale_steps
from safe_components.training.options import EnvConfig, OffPolicyConfig, RecipeConfig, RunConfig
from safe_components.training.population import Population
from safe_components.training.random_stream import RandomStream
from safe_components.training.replay import Replay
from safe_components.training.run import Run
from safe_components.training.settings import read_settings
from safe_components.training.state_file import read_state, write_state
from safe_components.training.stopwatch import Stopwatch
from safe_components.training.task import Task
from safe_components.training.units import value_units
from safe_components.training.video import record_video

__all__ = [
    "Averages",
    "CheckpointError",
    "Checkpoints",
    "CostControl",
    "DeterministicEpisodes",
    "Diagnosis",
    "EnvConfig",
    "EpisodeStatistics",
    "ExecutionConfig",
    "GraphedCall",
    "GraphedUpdate",
    "Learner",
    "Loop",
    "MetricsWriter",
    "OffPolicyConfig",
    "Population",
    "RandomStream",
    "RangeControl",
    "RecipeConfig",
    "Replay",
    "Run",
    "RunConfig",
    "StopRequest",
    "Stopwatch",
    "Task",
    "Training",
    "anneal",
    "annealed_group",
    "available_bytes",
    "config_to_dict",
    "episode_summary",
    "evaluate",
    "execute",
    "explained_errors",
    "export_policy",
    "fit_observation_norm",
    "launch",
    "leaves",
    "load_config",
    "load_policy",
    "memory_needed",
    "observation_norm",
    "options",
    "overlay",
    "parse_config",
    "plot_curves",
    "plot_diagnosis",
    "read_metrics",
    "read_settings",
    "read_state",
    "record_video",
    "require_finite",
    "require_memory",
    "require_memory_together",
    "run_alone",
    "save_policy",
    "scale_steps",
    "validate",
    "value_units",
    "with_gaps",
    "with_noise",
    "with_run",
    "with_value",
    "workers_ignore_interrupt",
    "write_state",
]
