"""Draw object layouts with the package's own random stream, in plain float arithmetic.

A layout is drawn object by object, and positions too near an earlier object are rejected. If an object finds
no place in 100 tries, the whole layout starts again. Crowded tasks draw thousands of positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from safe_components.envs.safety_gymnasium.fast.mixin import Mixin


class FastRandomGenerator(Mixin):
    """A ``RandomGenerator`` that makes the same draws and decisions in less time."""

    def sample_layout(self) -> bool:
        """Try once to place every object, as ``RandomGenerator.sample_layout`` does."""
        uniform, margin = self.random_generator.uniform, self.placements_margin
        placed: list[tuple[float, float, float]] = []
        layout = {}
        for name, (placements, keepout) in self.placements.items():
            areas = self._areas(placements, keepout)
            near = [(x, y, other + margin + keepout) for x, y, other in placed]
            for _ in range(100):
                xmin, ymin, xmax, ymax = areas[0] if len(areas) == 1 else self._choose(areas)
                x, y = uniform(xmin, xmax), uniform(ymin, ymax)
                if _is_free(x, y, near):
                    break
            else:
                return False
            placed.append((x, y, keepout))
            layout[name] = np.array([x, y])
        self.layout = layout
        return True

    def sample_goal_position(self) -> bool:
        """Try once to place the goal among the other objects, as ``RandomGenerator`` does."""
        placements, keepout = self.placements["goal"]
        x, y = self.draw_placement(placements, keepout).tolist()
        margin = self.placements_margin
        near = [
            (float(xy[0]), float(xy[1]), self.placements[name][1] + margin + keepout)
            for name, xy in self.layout.items()
        ]
        if not _is_free(x, y, near):
            return False
        self.layout["goal"] = np.array([x, y])
        return True

    def _areas(self, placements: Any, keepout: float) -> list[tuple[float, float, float, float]]:
        if placements is None:
            return [self.constrain_placement(self.placements_extents, keepout)]
        areas = [self.constrain_placement(placement, keepout) for placement in placements]
        areas = [area for area in areas if not (area[0] > area[2] or area[1] > area[3])]
        if not areas:
            raise AssertionError("Failed to find any placements with satisfy keepout")
        return areas

    def _choose(self, areas: list[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
        sizes = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in areas]
        return areas[int(self.random_generator.choice(len(areas), p=np.array(sizes) / np.sum(sizes)))]


def _is_free(x: float, y: float, near: list[tuple[float, float, float]]) -> bool:
    for other_x, other_y, limit in near:
        dx, dy = x - other_x, y - other_y
        if math.sqrt(dx * dx + dy * dy) < limit:
            return False
    return True
