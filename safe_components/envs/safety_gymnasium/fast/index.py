"""Cached indices into one MuJoCo model and its data.

The package asks MuJoCo for every body, sensor and geom by name, several times a step. This index looks up
each name once per model. It returns views of MuJoCo's own arrays, or integer indices into them.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np


class Index:
    """Look-ups into one ``MjModel``/``MjData`` pair, for one agent."""

    def __init__(self, model: Any, data: Any, agent_geom_names: list[str]) -> None:
        self.model = model
        self.data = data
        self.agent_body = model.body("agent").id
        self.xpos: np.ndarray = data.xpos
        self.sensordata: np.ndarray = data.sensordata
        self.agent_pos: np.ndarray = data.xpos[self.agent_body]
        self.agent_mat: np.ndarray = data.xmat[self.agent_body].reshape(3, 3)
        self.geom_names = [model.geom(i).name for i in range(model.ngeom)]
        own = set(agent_geom_names)
        self._agent_geoms = frozenset(i for i, name in enumerate(self.geom_names) if name in own)
        self._sensors: dict[str, slice] = {}
        self._bodies: dict[tuple[str, int], np.ndarray] = {}
        self._groups: dict[str | frozenset[str], frozenset[int]] = {}
        self._mocaps: dict[tuple[str, int], slice | np.ndarray] = {}
        self._jacobian = np.zeros((3, model.nv))

    def sensor(self, name: str) -> slice:
        """Return the place of the named sensor in ``sensordata``."""
        found = self._sensors.get(name)
        if found is None:
            i = self.model.sensor(name).id
            start = int(self.model.sensor_adr[i])
            found = self._sensors[name] = slice(start, start + int(self.model.sensor_dim[i]))
        return found

    def bodies(self, pattern: str, count: int) -> np.ndarray:
        """Return the ids of the bodies ``pattern.format(i)``, ``i < count``."""
        found = self._bodies.get((pattern, count))
        if found is None:
            ids = [self.model.body(pattern.format(i)).id for i in range(count)]
            found = self._bodies[pattern, count] = np.array(ids, dtype=np.intp)
        return found

    def mocaps(self, pattern: str, count: int) -> slice | np.ndarray:
        """Return the places of the mocap bodies ``pattern.format(i)``, ``i < count``, in ``mocap_pos``."""
        found = self._mocaps.get((pattern, count))
        if found is None:
            ids = self.model.body_mocapid[self.bodies(pattern, count)]
            first = int(ids[0]) if count else 0
            in_order = np.array_equal(ids, np.arange(first, first + count))
            found = self._mocaps[pattern, count] = slice(first, first + count) if in_order else ids
        return found

    def velocity(self, body: int) -> np.ndarray:
        """Return the Cartesian velocity of a body's frame, the Jacobian times ``qvel``."""
        mujoco.mj_jacBody(self.model, self.data, self._jacobian, None, body)
        return np.asarray(np.dot(self._jacobian, self.data.qvel))

    def touching(self, names: str | frozenset[str], *, but: str | None = None) -> int:
        """Count the contacts between the agent and other geoms.

        Args:
            names: names of the other geoms, or a prefix of their names.
            but: name of a geom whose contacts are not counted.
        """
        if not self.data.ncon:
            return 0
        geoms = self._groups.get(names)
        if geoms is None:
            wanted = [n.startswith(names) if isinstance(names, str) else n in names for n in self.geom_names]
            geoms = self._groups[names] = frozenset(np.flatnonzero(wanted).tolist())
        own, known, count = self._agent_geoms, self.geom_names, 0
        contact = self.data.contact
        for a, b in zip(contact.geom1.tolist(), contact.geom2.tolist(), strict=True):
            if (a in geoms or b in geoms) and (a in own or b in own):
                count += but is None or but not in (known[a], known[b])
        return count


def index_of(engine: Any, agent: Any) -> Index:
    """Return the index of an engine's present model and data, and make it on first use."""
    index: Index | None = engine.__dict__.get("lookup")
    if index is None or index.data is not engine.data:
        index = engine.lookup = Index(engine.model, engine.data, agent.body_info.geom_names)
    return index
