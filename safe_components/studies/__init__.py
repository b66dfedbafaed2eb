"""Studies over many runs, which compare variants of the algorithms over seeds in a table and a figure."""

from safe_components.studies.batch import batches_of, run_batches
from safe_components.studies.figure import over_seeds, plot_comparison
from safe_components.studies.plan import Member, check_limits, plan
from safe_components.studies.pool import Job, LocalPool, Pool
from safe_components.studies.ray_pool import RayPool
from safe_components.studies.record import hold, merge, read_study, record_study
from safe_components.studies.results import columns_of, measure, write_results
from safe_components.studies.schedule import Outcome, run_members
from safe_components.studies.statistics import (
    Summary,
    episode_mean,
    frames_to_best,
    frames_to_safe,
    last_frames,
    rolling_mean,
    summarize,
)
from safe_components.studies.variants import (
    VARIANTS,
    Choice,
    Variant,
    choose,
    choose_all,
    register_variant,
    unregister_variant,
    variant_table,
)

__all__ = [
    "VARIANTS",
    "Choice",
    "Job",
    "LocalPool",
    "Member",
    "Outcome",
    "Pool",
    "RayPool",
    "Summary",
    "Variant",
    "batches_of",
    "check_limits",
    "choose",
    "choose_all",
    "columns_of",
    "episode_mean",
    "frames_to_best",
    "frames_to_safe",
    "hold",
    "last_frames",
    "measure",
    "merge",
    "over_seeds",
    "plan",
    "plot_comparison",
    "read_study",
    "record_study",
    "register_variant",
    "rolling_mean",
    "run_batches",
    "run_members",
    "summarize",
    "unregister_variant",
    "variant_table",
    "write_results",
]
