"""Reset a world by moving its objects instead of compiling it again.

At each reset the package writes a new XML text, and MuJoCo compiles it with all images and meshes. Between
two resets only the objects' poses differ. A ``WorldTemplate`` keeps the compiled model. A reset writes the
new poses into it, and MuJoCo recomputes the constants that depend on them with ``mj_setConst``, as the
compiler does. The result equals the compiler's, bit for bit. The first resets of every kind of world check
this against the compiler. If it does not hold, resets compile.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import mujoco
import numpy as np

# The compiler does not normalize vectors whose length is this near to 1. Before MuJoCo 3 it normalized all.
_NEAR = 1e-14 if int(mujoco.__version__.partition(".")[0]) >= 3 else -1.0


class WorldTemplate:
    """A compiled world whose objects can be moved.

    Args:
        model: the compiled ``MjModel``, which resets change in place.
        data: its ``MjData``.
        z_height: the initial height of the agent.
    """

    def __init__(self, model: Any, data: Any, z_height: float) -> None:
        self.model = model
        self.data = data
        self.z_height = float(z_height)
        self._arrays = [(array, array.copy()) for array in model_arrays(model).values()]
        self._options = {
            name: value.copy() if isinstance(value, np.ndarray) else value
            for name, value in _fields(model.opt).items()
        }
        self._track = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        # The compiler copies the frame of a body without mass to its inertial frame.
        self._massless = (model.body_mass == 0.0) & (model.body_ipos == model.body_pos).all(axis=1)
        self._welds = np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_WELD)
        self._bodies: dict[str, tuple[int, int]] = {}
        self._geoms: dict[str, tuple[int, int]] = {}

    def reset(self, config: dict[str, Any]) -> None:
        """Bring the model and the data to the state of a newly compiled world.

        Args:
            config: the world's configuration, from ``BaseTask._build_world_config``.
        """
        model, data = self.model, self.data
        for array, value in self._arrays:  # undo every change since the compilation
            array[...] = value
        for name, value in self._options.items():
            setattr(model.opt, name, value)
        self._move_body("agent", (*config["agent_xy"], self.z_height), _yaw(config["agent_rot"]))
        model.cam_pos[self._track], model.cam_quat[self._track] = _track_camera(config["agent_rot"])
        for name, item in (*config["free_geoms"].items(), *config["geoms"].items()):
            self._move_body(name, item["pos"], None if item["type"] == "mesh" else _yaw(item["rot"]))
        for name, item in config["mocaps"].items():
            self._move_geom(name, item["pos"], _yaw(item["rot"]))
        model.body_ipos[self._massless] = model.body_pos[self._massless]
        model.body_iquat[self._massless] = model.body_quat[self._massless]
        model.eq_data[self._welds, 6:10] = 0.0  # no pose, so MuJoCo takes it from the two bodies
        mujoco.mj_resetData(model, data)  # the constants need the mocap bodies at their start
        mujoco.mj_setConst(model, data)
        # This scales the solver's tolerance. Since MuJoCo 4 it is not among those constants.
        model.stat.meaninertia = _sum(model.dof_M0.tolist()) / model.nv
        mujoco.mj_resetData(model, data)

    def _move_body(self, name: str, pos: Any, quat: list[float] | None) -> None:
        model = self.model
        if name not in self._bodies:
            body = model.body(name).id
            joint = model.body_jntadr[body]
            free = joint >= 0 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE
            self._bodies[name] = body, int(model.jnt_qposadr[joint]) if free else -1
        body, start = self._bodies[name]
        model.body_pos[body] = pos
        if quat is not None:
            model.body_quat[body] = quat
        if start >= 0:
            for reference in (model.qpos0, model.qpos_spring):
                reference[start : start + 3] = pos
                reference[start + 3 : start + 7] = model.body_quat[body]

    def _move_geom(self, name: str, pos: Any, quat: list[float]) -> None:
        model = self.model
        if name not in self._geoms:
            geom = model.geom(name).id
            self._geoms[name] = geom, int(model.geom_bodyid[geom])
        geom, body = self._geoms[name]
        model.geom_pos[geom] = model.body_ipos[body] = pos  # the center of mass of its only geom
        model.geom_quat[geom] = model.body_iquat[body] = quat


def model_arrays(model: Any) -> dict[str, np.ndarray]:
    """Return every writable array of a model, except for the images."""
    arrays = {name: value for name, value in _fields(model).items() if isinstance(value, np.ndarray)}
    return {
        name: value
        for name, value in arrays.items()
        if value.flags.writeable and value.size and not name.startswith("tex_")
    }


def differences(model: Any, other: Any) -> list[str]:
    """Return the names of the arrays in which two models differ, in shape or any bit of a value.

    There are two exceptions, which only affect images. Cameras may differ by rounding, because MuJoCo's
    versions compute the pose of the tracking camera from two axes in different orders. The scene's center and
    sizes, which place lights, are not compared, because since MuJoCo 4 they stay those of the first world.
    """
    mine, others = ({**model_arrays(m), **_statistics(m)} for m in (model, other))
    return sorted(
        name
        for name in mine.keys() | others.keys()
        if name not in mine or name not in others or not _equal(name, mine[name], others[name])
    )


def _statistics(model: Any) -> dict[str, np.ndarray]:
    return {
        "stat.meaninertia": np.array(model.stat.meaninertia),
        "stat.meanmass": np.array(model.stat.meanmass),
    }


def _equal(name: str, array: np.ndarray, other: np.ndarray) -> bool:
    if array.shape == other.shape and name.startswith("cam_"):
        return np.allclose(array, other, rtol=0, atol=1e-14)
    return array.shape == other.shape and array.tobytes() == other.tobytes()


def _fields(struct: Any) -> dict[str, Any]:
    names = [name for name in dir(type(struct)) if not name.startswith("_")]
    values = {name: getattr(struct, name) for name in names}
    return {name: value for name, value in values.items() if not callable(value)}


def _sum(values: Iterable[float]) -> float:
    """Sum from the first value to the last, as C does; since 3.12 Python's ``sum`` compensates rounding."""
    return functools.reduce(operator.add, values, 0.0)


def _unit(vector: list[float]) -> list[float]:
    """Divide a vector by its length, in the compiler's order and only where the compiler does so."""
    length = math.sqrt(_sum(x * x for x in vector))
    return vector if abs(length - 1.0) <= _NEAR else [x / length for x in vector]


def _yaw(angle: float) -> list[float]:
    """Return the quaternion of a rotation about the vertical."""
    return _unit([float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))])


def _track_camera(rot: float) -> tuple[list[float], list[float]]:
    """Return the pose of the camera that follows the agent, in the agent's frame."""
    theta = rot + np.pi
    cos, sin = float(np.cos(theta)), float(np.sin(theta))
    x, y = _unit([cos, -sin, 0.0]), [sin, cos, 1.0]
    along = _sum(a * b for a, b in zip(x, y, strict=True))
    y = _unit([b - a * along for a, b in zip(x, y, strict=True)])
    z = _unit([x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]])
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.array([x, y, z]).T.ravel())
    return [-2 * sin, -2 * cos, 2.0], _unit(quat.tolist())
