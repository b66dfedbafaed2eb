"""What every recipe needs and no algorithm owns, where the rooms have to be connected."""

from plumbing.critics import ConstrainedCritics
from plumbing.execution import ExecutionConfig, execute
from plumbing.exploration import with_noise
from plumbing.lagrangian import OffPolicyLagrangianConfig, train_lagrangian
from plumbing.limit_schedule import LimitScheduleConfig, limit_at
from plumbing.memory import require_memory
from plumbing.multiplier import LagrangianConfig, make_multiplier
from plumbing.off_policy import OffPolicyConfig, make_buffer, n_step_transitions, train_off_policy
from plumbing.report import report
from plumbing.targets import Copy, Polyak
from plumbing.task import Task

__all__ = [
    "ConstrainedCritics",
    "Copy",
    "ExecutionConfig",
    "LagrangianConfig",
    "LimitScheduleConfig",
    "OffPolicyConfig",
    "OffPolicyLagrangianConfig",
    "Polyak",
    "Task",
    "execute",
    "limit_at",
    "make_buffer",
    "make_multiplier",
    "n_step_transitions",
    "report",
    "require_memory",
    "train_lagrangian",
    "train_off_policy",
    "with_noise",
]
