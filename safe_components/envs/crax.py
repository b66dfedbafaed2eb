"""CRAX's navigation tasks (Tomilin et al. 2026, arXiv 2606.20376): Safety-Gymnasium's, made for a GPU."""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from typing import Any

from safe_components.envs import brax
from safe_components.envs.extra import require_packages

# CRAX pins a MuJoCo that Safety-Gymnasium is not tested with. It needs what Brax needs, and runs with that.
INSTALL = f"{brax.INSTALL} && pip install --no-deps crax-bench==0.1.0"
CRAX_TASKS = ("crax/safe_goal_point", "crax/safe_circle_point", "crax/safe_button_point")
_LEVEL = re.compile(r"(.+?)_level_([123])")


def split_level(env_id: str) -> tuple[str, int]:
    """Return an id's task and its level, which is 1 unless the id names another.

    Example:
        >>> split_level("crax/safe_goal_point_level_2"), split_level("crax/safe_goal_point")
        (('crax/safe_goal_point', 2), ('crax/safe_goal_point', 1))
    """
    found = _LEVEL.fullmatch(env_id)
    return (found[1], int(found[2])) if found else (env_id, 1)


@functools.cache
def make_crax(env_id: str) -> Any:
    """Make the simulator of one of ``CRAX_TASKS``, or of its ``_level_2`` or ``_level_3``.

    Raises:
        ImportError: if CRAX is not installed.
    """
    require_packages(env_id, INSTALL, "crax.envs", "mujoco.mjx")
    task, level = split_level(env_id)
    envs = importlib.import_module("crax.envs")
    with warnings.catch_warnings():  # its copy of Brax recommends another package each time
        warnings.filterwarnings("ignore", "Brax System", UserWarning)
        return envs.get_environment(task.removeprefix("crax/"), level=level)
