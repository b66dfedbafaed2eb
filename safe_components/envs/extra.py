"""What to say if a package of an optional extra is missing."""

from __future__ import annotations

import importlib.util


def require_packages(env_id: str, install: str, *modules: str) -> None:
    """Raise ImportError, with the command that helps, for the first module that is not installed.

    Example:
        >>> require_packages("sim/Task", "pip install sim", "torch", "no_such_simulator")
        Traceback (most recent call last):
        ImportError: sim/Task needs no_such_simulator, which is not installed: pip install sim
    """
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # of the package that it is in
            found = None
        if found is None:
            raise ImportError(f"{env_id} needs {module}, which is not installed: {install}")
