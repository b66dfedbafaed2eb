"""A video of a policy at work: rendered by the environment, or drawn where it has nothing to render."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.transforms import ObservationNorm

from safe_components import keys
from safe_components.envs import PointCircle, make_env, safety_gymnasium_ids
from safe_components.training import EnvConfig

imageio_ffmpeg = None
with contextlib.suppress(ImportError):
    import imageio_ffmpeg

__all__ = ["record_video"]

_SIZE = 320  # pixels
_MILLISECONDS = 30  # per frame; a GIF counts in hundredths of a second
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")


def record_video(
    policy: Callable[[TensorDictBase], TensorDictBase],
    norm: ObservationNorm,
    config: EnvConfig,
    stem: Path,
    *,
    episodes: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Path:
    """Write episodes of ``policy`` one after the other, with step, reward and costs so far.

    Args:
        policy: writes the action, under the exploration type set around this call.
        norm: scales the observations for it.
        config: the environment; one copy of it is made.
        stem: the file without its ending: ``.mp4`` where ``imageio-ffmpeg`` is installed, else ``.gif``.
        episodes: how many.
        seed: of the first.
        device: of the policy.

    Returns:
        The file.

    Raises:
        ValueError: if the environment cannot be rendered here.
    """
    env = _rendered_env(config, seed)
    try:
        return _write(_frames(policy, norm, env, episodes, torch.device(device)), stem)
    finally:
        env.close()


def _rendered_env(config: EnvConfig, seed: int) -> EnvBase:
    settings = dataclasses.asdict(config) | {"num_envs": 1, "num_workers": 1, "seed": seed}
    env_id = settings.pop("id")
    if env_id == "PointCircle":
        return make_env(env_id, **settings)
    if sys.platform == "linux" and not any(os.environ.get(name) for name in _SCREENS):
        os.environ.setdefault("MUJOCO_GL", "egl")  # without it MuJoCo looks for a screen, and fails
    settings["render_mode"] = "rgb_array"
    if env_id in safety_gymnasium_ids():
        # From where obstacles and goals are seen; the default looks out of the robot's eyes.
        camera = "track" if "Velocity" in env_id else "fixedfar"
        settings |= {"camera_name": camera, "width": _SIZE, "height": _SIZE}
    try:
        env = make_env(env_id, **settings)
        env.reset()
        _picture(env, [])
    except Exception as error:  # whatever a simulator, or the graphics driver under it, raises
        raise ValueError(
            f"{env_id} cannot be rendered here ({type(error).__name__}: {error}); it must offer "
            "render_mode='rgb_array', and MuJoCo needs MUJOCO_GL=egl or osmesa and the library of that name"
        ) from error
    env.set_seed(seed)
    return env


@torch.no_grad()
def _frames(
    policy: Callable[[TensorDictBase], TensorDictBase],
    norm: ObservationNorm,
    env: EnvBase,
    episodes: int,
    device: torch.device,
) -> Iterator[Image.Image]:
    for episode in range(episodes):
        state, done = env.reset(), False
        past = [state]
        reward, costs = 0.0, torch.zeros(env.full_reward_spec["cost"].shape[-1])
        while not done:
            # Scaled in a copy: what is drawn is in the environment's own units.
            action = policy(norm(state.clone()).to(device))[keys.ACTION]
            step = env.step(state.set(keys.ACTION, action.to(env.device)))["next"]
            reward, costs = reward + float(step["reward"]), costs + step["cost"]
            past.append(step)
            said = ", ".join(f"{cost:g}" for cost in costs.tolist())
            text = f"episode {episode + 1}   step {len(past) - 1}\nreward {reward:.1f}   cost {said}"
            yield _captioned(_picture(env, past), text)
            state, done = step.exclude("reward", "cost"), bool(step["done"])


def _picture(env: EnvBase, past: list[TensorDictBase]) -> Image.Image:
    if isinstance(env, PointCircle):
        return _draw_point_circle(env, [tuple(step[keys.OBSERVATION][:2].tolist()) for step in past[-60:]])
    picture = env.render()
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.dtype != np.uint8:
        raise TypeError(f"render() gave {type(picture).__name__}, not a picture [height, width, 3]")
    return Image.fromarray(picture).convert("RGB")


def _draw_point_circle(env: PointCircle, trail: list[tuple[float, float]]) -> Image.Image:
    """From above: the circle, the walls with what lies beyond them shaded, the point and its trail."""
    fine = 2 * _SIZE  # drawn twice as large, then reduced: smooth lines
    reach = 1.6 * max(env.radius, env.x_lim)  # metres from the centre to the border

    def pixel(x: float, y: float) -> tuple[float, float]:
        return fine / 2 * (1 + x / reach), fine / 2 * (1 - y / reach)

    def disc(x: float, y: float, radius: float) -> tuple[float, ...]:
        return (*pixel(x - radius, y + radius), *pixel(x + radius, y - radius))

    image = Image.new("RGB", (fine, fine), "#f6dddd")
    draw = ImageDraw.Draw(image)
    left, right = pixel(-env.x_lim, 0)[0], pixel(env.x_lim, 0)[0]
    draw.rectangle((left, -9, right, fine + 9), fill="white", outline="#b03030", width=4)
    draw.ellipse(disc(0, 0, env.radius), outline="gray", width=3)
    draw.line([pixel(*position) for position in trail], fill="#7aa6d6", width=5, joint="curve")
    draw.ellipse(disc(*trail[-1], 0.05 * reach), fill="#1f4e8c")
    return image.resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)


def _captioned(picture: Image.Image, text: str) -> Image.Image:
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(picture).text((6, 4), text, "white", font, stroke_width=2, stroke_fill="black")
    return picture


def _write(frames: Iterator[Image.Image], stem: Path) -> Path:
    first = next(frames)
    if imageio_ffmpeg is None:
        path = stem.with_suffix(".gif")
        first.save(path, save_all=True, append_images=frames, duration=_MILLISECONDS, loop=0)
        return path
    path = stem.with_suffix(".mp4")
    writer = imageio_ffmpeg.write_frames(str(path), first.size, fps=1000 / _MILLISECONDS)
    writer.send(None)
    for frame in (first, *frames):
        writer.send(frame.tobytes())
    writer.close()
    return path
