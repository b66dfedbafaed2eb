"""The pseudo-lidar of several obstacles at once.

An object at egocentric distance d and angle φ reads s = max(0, D − d)/D in the bin of φ. Without a maximal
distance D it reads s = exp(−g·d). The two neighboring bins share s according to its place in the bin. A bin
keeps its largest reading.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TWO_PI = np.pi * 2


def lidar(
    positions: np.ndarray, counts: list[int], agent_pos: np.ndarray, agent_mat: np.ndarray, conf: Any
) -> list[list[float]]:
    """Return the readings of every group, which ``BaseTask._obs_lidar_pseudo`` computes one by one.

    This code uses NumPy's functions wherever the package does, on all objects together. They give the same
    bits for one number and for many, but Python's own ``math`` and ``abs`` do not.

    Args:
        positions: world positions of all objects [N, 3], which are overwritten. The height is ignored.
        counts: number of objects in each group. The sum is N.
        agent_pos: the agent's position [3].
        agent_mat: the agent's rotation matrix [3, 3].
        conf: ``LidarConf``: ``num_bins``, ``max_dist``, ``exp_gain``, ``alias``.

    Returns:
        One list of ``num_bins`` readings per group.
    """
    positions[:, 2] = 0.0
    positions -= agent_pos
    # Each object is one row vector times the matrix, by the same BLAS call as for a single vector.
    ego = np.matmul(positions[:, None, :], agent_mat)[:, 0]
    plane = np.empty(len(ego), dtype=complex)
    plane.real, plane.imag = ego[:, 0], ego[:, 1]
    distances = np.abs(plane).tolist()
    angles = (np.arctan2(plane.imag, plane.real) % TWO_PI).tolist()

    bins, max_dist, alias = conf.num_bins, conf.max_dist, conf.alias
    bin_size = TWO_PI / bins
    found, start = [], 0
    for count in counts:
        obs = [0.0] * bins
        for k in range(start, start + count):
            angle, distance = angles[k], distances[k]
            if angle >= TWO_PI:  # a tiny negative angle is rounded to 2π, which breaks the package's index
                angle = 0.0
            i = int(angle / bin_size)
            if max_dist is None:
                sensor = float(np.exp(-conf.exp_gain * distance))
            else:
                sensor = max(0, max_dist - distance) / max_dist
            if sensor > obs[i]:
                obs[i] = sensor
            if alias:
                share = (angle - bin_size * i) / bin_size
                plus, minus = (i + 1) % bins, i - 1
                if share * sensor > obs[plus]:
                    obs[plus] = share * sensor
                if (1 - share) * sensor > obs[minus]:
                    obs[minus] = (1 - share) * sensor
        found.append(obs)
        start += count
    return found
