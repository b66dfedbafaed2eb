"""The picture that ``PointCircle.render`` returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIZE = 320  # pixels, in both directions


def draw_point_circle(trail: Sequence[tuple[float, float]], radius: float, x_lim: float) -> np.ndarray:
    """Draw the circle, the walls, the point and its trail from above; the area beyond the walls is shaded.

    Args:
        trail: positions (x, y) [m], the present one last.
        radius: of the circle [m].
        x_lim: distance of the walls from the center [m].

    Returns:
        The image [``SIZE``, ``SIZE``, 3], uint8.
    """
    fine = 2 * SIZE  # drawn twice as large and then reduced, so that lines are smooth
    reach = 1.6 * max(radius, x_lim)  # meters from the center to the border

    def pixel(x: float, y: float) -> tuple[float, float]:
        return fine / 2 * (1 + x / reach), fine / 2 * (1 - y / reach)

    def disc(x: float, y: float, radius: float) -> tuple[float, ...]:
        return (*pixel(x - radius, y + radius), *pixel(x + radius, y - radius))

    image = Image.new("RGB", (fine, fine), "#f6dddd")
    draw = ImageDraw.Draw(image)
    left, right = pixel(-x_lim, 0)[0], pixel(x_lim, 0)[0]
    draw.rectangle((left, -9, right, fine + 9), fill="white", outline="#b03030", width=4)
    draw.ellipse(disc(0, 0, radius), outline="gray", width=3)
    draw.line([pixel(x, y) for x, y in trail], fill="#7aa6d6", width=5, joint="curve")
    draw.ellipse(disc(*trail[-1], 0.05 * reach), fill="#1f4e8c")
    return np.array(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
