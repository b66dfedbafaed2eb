"""Which textures a task's XML asks MuJoCo to decode.

Every compilation of a navigation task decodes about 24 MB of sky-box PNGs, and the 1.0.0 wheel lacks some
images of the Race tasks. Textures do not affect the physics, so a flat color replaces an image that is
missing or not needed.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import xmltodict

_PLAIN = contextvars.ContextVar("plain_textures", default=False)


@contextmanager
def plain_textures(enabled: bool = True) -> Iterator[None]:
    """Compile worlds within this block without decoding any image."""
    token = _PLAIN.set(enabled)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def unparse(xml: dict[str, Any]) -> str:
    """Turn a world's XML dictionary into text, after replacing the images that MuJoCo need not decode.

    This function takes the place of ``xmltodict.unparse`` in ``safety_gymnasium.world``. An image file is
    kept if it exists and ``plain_textures`` is not in force.
    """
    asset = xml["mujoco"]["asset"]
    folder = xml["mujoco"]["compiler"]["@texturedir"]
    textures = asset["texture"] if isinstance(asset["texture"], list) else [asset["texture"]]
    asset["texture"] = [texture if _is_kept(texture, folder) else _flat(texture) for texture in textures]
    return str(xmltodict.unparse(xml))


def _is_kept(texture: dict[str, str], folder: str) -> bool:
    files = [value for key, value in texture.items() if key.startswith("@file")]
    if not files:
        return True
    return not _PLAIN.get() and all(os.path.exists(os.path.join(folder, file)) for file in files)


def _flat(texture: dict[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in texture.items() if not key.startswith("@file")}
    height = "6" if texture.get("@type") == "skybox" else "1"
    return {**kept, "@builtin": "flat", "@rgb1": ".6 .6 .6", "@width": "1", "@height": height}
