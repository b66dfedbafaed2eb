"""A video of a policy, rendered by its environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from safe_components import keys
from safe_components.envs import make_env, safety_gymnasium_ids
from safe_components.envs.headless import OPENGL_HINT
from safe_components.training.options import EnvConfig

try:
    import imageio_ffmpeg
except ImportError:
    imageio_ffmpeg = None

__all__ = ["record_video"]

_SIZE = 320  # pixels
_MILLISECONDS = 30  # per frame; a GIF stores hundredths of a second


def record_video(
    policy: Callable[[TensorDictBase], TensorDictBase],
    config: EnvConfig,
    stem: Path,
    *,
    episodes: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    wrap: Callable[[EnvBase], EnvBase] = lambda env: env,
) -> Path:
    """Record successive episodes of ``policy``, with captions of the step, the reward and the costs so far.

    Args:
        policy: policy that reads raw observations and writes the action, such as one from `load_policy`.
        config: configuration of the environment; one copy of the environment is made.
        stem: path of the file without its suffix, which is ``.mp4`` if ``imageio-ffmpeg`` is installed and
            ``.gif`` otherwise.
        episodes: number of episodes.
        seed: seed of the environment.
        device: device of the policy.
        wrap: function that adds transforms to the environment, such as `Task.with_inputs`.

    Returns:
        The path of the file.

    Raises:
        ValueError: if the environment cannot be rendered here.
    """
    env = wrap(rendered_env(config, seed))
    try:
        return _write(_frames(policy, env, episodes, torch.device(device)), stem)
    finally:
        env.close()


def rendered_env(config: EnvConfig, seed: int, size: int = _SIZE) -> EnvBase:
    """Make one seeded copy of an environment whose ``render`` returns a picture of about ``size`` pixels.

    Raises:
        ValueError: if the environment cannot be rendered here.
    """
    settings = config.arguments | {"num_envs": 1, "num_workers": 1, "seed": seed}
    env_id = settings.pop("id")
    settings["render_mode"] = "rgb_array"
    if env_id.startswith("Safety") and env_id in safety_gymnasium_ids():
        # A camera that shows obstacles and goals; the default camera is on the robot.
        camera = "track" if "Velocity" in env_id else "fixedfar"
        settings |= {"camera_name": camera, "width": size, "height": size}
    try:
        env = make_env(env_id, **settings)
        env.reset()
        picture_of(env)
    except Exception as error:  # a simulator or its graphics driver may raise any exception
        raise ValueError(
            f"{env_id} cannot be rendered here ({type(error).__name__}: {error}); it must offer "
            f"render_mode='rgb_array', and {OPENGL_HINT}"
        ) from error
    env.set_seed(seed)
    return env


@torch.no_grad()
def _frames(
    policy: Callable[[TensorDictBase], TensorDictBase],
    env: EnvBase,
    episodes: int,
    device: torch.device,
) -> Iterator[Image.Image]:
    for episode in range(episodes):
        state, done = env.reset(), False
        steps, reward, costs = 0, 0.0, torch.zeros(env.full_reward_spec["cost"].shape[-1])
        while not done:
            action = policy(state.to(device))[keys.ACTION]
            step = env.step(state.set(keys.ACTION, action.to(env.device)))["next"]
            steps, reward, costs = steps + 1, reward + float(step["reward"]), costs + step["cost"]
            said = ", ".join(f"{cost:g}" for cost in costs.tolist())
            text = f"episode {episode + 1}   step {steps}\nreward {reward:.1f}   cost {said}"
            yield _captioned(picture_of(env), text)
            state, done = step.exclude("reward", "cost"), bool(step["done"])


def picture_of(env: EnvBase) -> Image.Image:
    """Return what the environment renders now; TypeError if that is not a picture."""
    picture = env.render()
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.dtype != np.uint8:
        raise TypeError(f"render() gave {type(picture).__name__}, not a picture [height, width, 3]")
    return Image.fromarray(picture).convert("RGB")


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
