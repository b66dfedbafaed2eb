"""Rendering by MuJoCo on a machine without a screen."""

from __future__ import annotations

import os
import sys

_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
OPENGL_HINT = "MuJoCo renders without a screen with MUJOCO_GL=egl or osmesa and the library of that name"


def render_without_screen() -> None:
    """Choose EGL for MuJoCo on Linux without a screen, unless ``MUJOCO_GL`` is set.

    MuJoCo would look for a screen and fail. It reads the variable when it renders for the first time.
    """
    if sys.platform == "linux" and not any(os.environ.get(name) for name in _SCREENS):
        os.environ.setdefault("MUJOCO_GL", "egl")
