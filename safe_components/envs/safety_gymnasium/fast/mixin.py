"""The base class of the fast path's methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class Mixin:
    """Methods that are put before those of one of the package's classes, see ``accelerate``.

    That class owns every other attribute, which the type checker cannot know. ``_own`` is the class itself.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...
