"""Building blocks for safe reinforcement learning with TorchRL.

The packages load when they are first used, so this import is cheap:

    >>> import safe_components
    >>> float(safe_components.ops.q_cost_limit(25.0, gamma=0.99, episode_length=200).round(decimals=3))
    10.825

The installed recipes are ``safe_components.recipes``; the command ``safe-components`` lists and runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = [
    "collectors",
    "critics",
    "envs",
    "estep",
    "keys",
    "lagrangian",
    "mstep",
    "ops",
    "policies",
    "studies",
    "training",
]

if TYPE_CHECKING:
    from safe_components import (
        collectors,
        critics,
        envs,
        estep,
        keys,
        lagrangian,
        mstep,
        ops,
        policies,
        studies,
        training,
    )
else:  # hidden from type checkers, which would take any attribute for a module

    def __getattr__(name: str):
        if name in __all__:
            import importlib

            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
