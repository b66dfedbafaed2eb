"""Fill a flat observation in one pass, from indices that are computed once per environment."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from safe_components.envs.safety_gymnasium.fast.index import Index
from safe_components.envs.safety_gymnasium.fast.lidar import lidar


class ObservationPlan:
    """The source of each part of a task's flat observation.

    The parts follow the order of the observation space. They are sensors as MuJoCo holds them, hinge angles
    as (sin, cos), ball-joint quaternions as rotation matrices, and one lidar or compass per kind of object.
    """

    def __init__(self, task: Any, index: Index) -> None:
        self.space = task.observation_space
        info, conf = task.agent.sensor_info, task.agent.sensor_conf
        angles = set(info.hinge_pos_names) if conf.sensors_angle_components else set()
        quaternions = set(info.ballquat_names) if conf.sensors_angle_components else set()
        objects = {f"{o.name}_lidar": o for o in task._obstacles if o.is_lidar_observed}
        compasses = {f"{o.name}_comp": o for o in task._obstacles if getattr(o, "is_comp_observed", False)}
        self.lidars: list[tuple[Any, slice]] = []
        self.compasses: list[tuple[Any, slice]] = []
        self.quaternions: list[tuple[slice, slice]] = []
        target: list[int] = []
        source: list[int] = []
        hinges: list[tuple[int, int]] = []
        start = 0
        for key, space in task.obs_info.obs_space_dict.spaces.items():
            here = slice(start, start := start + int(np.prod(space.shape)))
            if key in objects:
                self.lidars.append((objects[key], here))
            elif key in compasses:
                self.compasses.append((compasses[key], here))
            elif key in angles:
                hinges.append((here.start, index.sensor(key).start))
            elif key in quaternions:
                self.quaternions.append((here, index.sensor(key)))
            else:
                sensor = index.sensor(key)
                first = sensor.start + 2 * (key == info.freejoint_pos_name)  # only its height is observed
                target += range(here.start, here.stop)
                source += range(first, sensor.stop)
        self.size = start
        # Objects without a body, such as the circle, are asked for their positions instead.
        bodies = [o.ids if hasattr(o, "ids") else None for o, _ in self.lidars]
        known = [ids for ids in bodies if ids is not None]
        self.lidar_bodies = np.concatenate(known) if known and len(known) == len(bodies) else None
        self.lidar_counts = [len(np.array(o.pos, ndmin=2)) for o, _ in self.lidars]
        self.target, self.source = np.array(target), np.array(source)
        self.hinge_target = np.array([t for t, _ in hinges], dtype=np.intp)
        self.hinge_source = np.array([s for _, s in hinges], dtype=np.intp)
        self._matrix = np.empty(9)

    def fill(self, task: Any, index: Index) -> np.ndarray:
        """Return the observation of the present state."""
        out = np.empty(self.size)
        sensors = index.sensordata
        out[self.target] = sensors[self.source]
        if len(self.hinge_source):
            theta = sensors[self.hinge_source]
            out[self.hinge_target] = np.sin(theta)
            out[self.hinge_target + 1] = np.cos(theta)
        for here, sensor in self.quaternions:
            mujoco.mju_quat2Mat(self._matrix, sensors[sensor].copy())
            out[here] = self._matrix
        self._fill_lidars(out, task, index)
        for obstacle, here in self.compasses:
            out[here] = task._obs_compass(obstacle.pos)
        return out

    def _fill_lidars(self, out: np.ndarray, task: Any, index: Index) -> None:
        if task.lidar_conf.type != "pseudo":
            for obstacle, here in self.lidars:
                out[here] = task._obs_lidar(obstacle.pos, obstacle.group)
            return
        if not self.lidars:
            return
        if self.lidar_bodies is not None:
            positions = index.xpos[self.lidar_bodies]
        else:
            positions = np.concatenate([np.array(o.pos, dtype=float, ndmin=2) for o, _ in self.lidars])
        readings = lidar(positions, self.lidar_counts, index.agent_pos, index.agent_mat, task.lidar_conf)
        for (obstacle, here), reading in zip(self.lidars, readings, strict=True):
            # After a button was pressed, no button can be seen until the timer has run down.
            out[here] = 0.0 if obstacle.name == "buttons" and obstacle.timer != 0 else reading
