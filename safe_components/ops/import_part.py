"""A part of one's own, named by where it is imported from."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["import_module", "import_part", "is_import_path"]


def is_import_path(text: str) -> bool:
    """Whether a text has the form ``package.module:name``.

    Example:
        >>> is_import_path("my_package.parts:Solver"), is_import_path("newton"), is_import_path("my parts:f")
        (True, False, False)
    """
    module, colon, name = text.partition(":")
    return bool(colon) and all(word.isidentifier() for word in (*module.split("."), *name.split(".")))


def import_part(path: str, option: str = "import path") -> Any:
    """Return the object that ``package.module:name`` names.

    Modules are looked for where Python looks for them, and then in the current directory.

    Args:
        path: module and name, separated by a colon. The name may hold dots, for an attribute of a class.
        option: what the path was given to, for error messages.

    Raises:
        ValueError: if ``path`` has another form, if there is no such module, or if it holds no such name.
        ImportError: if importing the module raises an error, which is the ``__cause__``.

    Example:
        >>> import_part("math:pi")
        3.141592653589793
        >>> import_part("math:tau2", "--critics.network")
        Traceback (most recent call last):
        ValueError: --critics.network is 'math:tau2', but module 'math' has no attribute 'tau2'
    """
    if not is_import_path(path):
        raise ValueError(f"{option} is {path!r}, must be package.module:name")
    module, _, name = path.partition(":")
    part: Any = import_module(module, f"{option} is {path!r}")
    for word in name.split("."):
        if not hasattr(part, word):
            what = f"module {module!r}" if part is sys.modules.get(module) else repr(part)
            raise ValueError(f"{option} is {path!r}, but {what} has no attribute {word!r}")
        part = getattr(part, word)
    return part


def import_module(module: str, said: str) -> ModuleType:
    """Import a module from where Python looks for modules, or else from the current directory.

    Args:
        module: full name of the module.
        said: where the name comes from, for error messages.

    Raises:
        ValueError: if there is no such module.
        ImportError: if importing it raises an error, which is the ``__cause__``.

    Example:
        >>> import_module("mth", "the part is 'mth:pi'")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the part is 'mth:pi', but there is no module 'mth' (Python looks in ..., too)
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise ValueError(
                f"{said}, but there is no module {missing!r} (Python looks in {here}, too)"
            ) from error
        raise ImportError(
            f"{said}, but importing {module!r} raises {type(error).__name__}: {error}"
        ) from error
