"""Agents and obstacles that read MuJoCo by index instead of by name, with the same numbers.

Each class is mixed in before one of the package's own (see ``accelerate``). It replaces only what every step
evaluates: positions, distances, contacts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from safe_components.envs.safety_gymnasium.fast.index import Index, index_of
from safe_components.envs.safety_gymnasium.fast.mixin import Mixin


class FastAgent(Mixin):
    """A ``BaseAgent`` with cached look-ups."""

    @property
    def lookup(self) -> Index:
        """Look-ups into the present model."""
        return index_of(self.engine, self)

    @property
    def pos(self) -> np.ndarray:
        """Position in the world [3]."""
        return self.lookup.agent_pos.copy()

    @property
    def mat(self) -> np.ndarray:
        """Rotation matrix [3, 3]."""
        return self.lookup.agent_mat.copy()

    @property
    def vel(self) -> np.ndarray:
        """Cartesian velocity [3]."""
        index = self.lookup
        return index.velocity(index.agent_body)

    def get_sensor(self, name: str) -> np.ndarray:
        """Return the reading of one sensor."""
        index = self.lookup
        return index.sensordata[index.sensor(name)].copy()

    def dist_xy(self, pos: Any) -> float:
        """Return the distance to a position in the plane."""
        x, y = self.lookup.agent_pos[:2].tolist()
        dx, dy = float(pos[0]) - x, float(pos[1]) - y
        return math.sqrt(dx * dx + dy * dy)

    def apply_action(self, action: np.ndarray, noise: np.ndarray | None = None) -> None:
        """Write the action, clipped to its range, into the controls."""
        if noise is not None:
            self._own.apply_action(self, action, noise)
            return
        engine = self.engine
        bounds, ctrl = engine.model.actuator_ctrlrange, engine.data.ctrl
        np.minimum(np.maximum(action, bounds[:, 0]), bounds[:, 1], out=ctrl)


class FastAnt(FastAgent):
    """The ``Ant``, which dies when its torso touches the ground."""

    def is_alive(self) -> bool:
        """Whether the torso is above the ground."""
        return bool(self.lookup.agent_pos[2] > 0.08)


class _FastObject(Mixin):
    pattern = ""

    @property
    def lookup(self) -> Index:
        """Look-ups into the present model."""
        return index_of(self.engine, self.agent)

    @property
    def ids(self) -> np.ndarray:
        """Ids of this object's bodies."""
        return self.lookup.bodies(self.pattern, getattr(self, "num", 1))


class _FastSingle(_FastObject):
    @property
    def pos(self) -> np.ndarray:
        """Position in the world [3]."""
        return np.array(self.lookup.xpos[self.ids[0]])


class _FastGroup(_FastObject):
    @property
    def pos(self) -> np.ndarray:
        """Positions in the world [num, 3]."""
        return np.asarray(self.lookup.xpos[self.ids])

    def contact_cost_of(self, key: str, name: str, unit: float, but: str | None = None) -> dict[str, Any]:
        if not self.is_constrained:
            return {}
        cost: float = 0
        for _ in range(self.lookup.touching(name, but=but)):  # as many additions as in the original
            cost += unit
        return {key: cost}


class FastGoal(_FastSingle):
    """``Goal`` with cached look-ups."""

    pattern = "goal"


class FastPushBox(_FastSingle):
    """``PushBox`` with cached look-ups."""

    pattern = "push_box"


class FastHazards(_FastGroup):
    """``Hazards`` with cached look-ups, whose cost is the depth of the agent inside each."""

    pattern = "hazard{}"

    def cal_cost(self) -> dict[str, Any]:
        """Return the cost of the hazards."""
        if not self.is_constrained:
            return {}
        cost, size = 0, self.size
        x, y = self.lookup.agent_pos[:2].tolist()
        for hx, hy, _ in self.pos.tolist():
            dx, dy = hx - x, hy - y
            distance = math.sqrt(dx * dx + dy * dy)
            if distance <= size:
                cost += self.cost * (size - distance)
        return {"cost_hazards": cost}


class FastPillars(_FastGroup):
    """``Pillars`` with cached look-ups."""

    pattern = "pillar{}"

    def cal_cost(self) -> dict[str, Any]:
        """Return the cost of the contacts."""
        return self.contact_cost_of("cost_pillars", "pillar", self.cost)


class FastButtons(_FastGroup):
    """``Buttons`` with cached look-ups."""

    pattern = "button{}"

    def cal_cost(self) -> dict[str, Any]:
        """Return the cost of touching a button that is not the goal."""
        if self.timer != 0:
            return {}
        return self.contact_cost_of("cost_buttons", "button", self.cost, but=f"button{self.goal_button}")


class FastSigwalls(_FastObject):
    """``Sigwalls`` with cached look-ups, whose cost is paid outside the walls."""

    def cal_cost(self) -> dict[str, Any]:
        """Return the cost of the boundary."""
        if not self.is_constrained:
            return {}
        x, y = self.lookup.agent_pos[:2].tolist()
        outside = abs(x) > self.locate_factor or (self.num == 4 and abs(y) > self.locate_factor)
        return {"cost_out_of_boundary": outside}


class FastVases(_FastGroup):
    """``Vases`` with cached look-ups, whose cost is paid for touching and moving them."""

    pattern = "vase{}"

    def cal_cost(self) -> dict[str, Any]:
        """Return the cost of contacts and velocities."""
        if not self.is_constrained or self.displace_cost:
            return dict(self._own.cal_cost(self))
        cost: dict[str, Any] = {"cost_vases_contact": 0}
        if self.contact_cost:
            cost = self.contact_cost_of("cost_vases_contact", "vase", self.contact_cost)
        if self.velocity_cost:
            total, index = 0, self.lookup
            for body in self.ids.tolist():
                velocity = index.velocity(body)
                speed = np.sqrt(np.sum(np.square(velocity)))
                if speed >= self.velocity_threshold:
                    total += speed * self.velocity_cost
            cost["cost_vases_velocity"] = total
        return cost


class FastGremlins(_FastGroup):
    """``Gremlins`` with cached look-ups, which are dragged along circles."""

    pattern = "gremlin{}obj"

    def cal_cost(self) -> dict[str, Any]:
        """Return the cost of the contacts."""
        return self.contact_cost_of("cost_gremlins", "gremlin", self.contact_cost)

    def move(self) -> None:
        """Set the positions that drag the gremlins at the present time."""
        index = self.lookup
        phase = float(index.data.time)
        target = index.mocaps("gremlin{}mocap", self.num)
        index.data.mocap_pos[target] = (np.sin(phase) * self.travel, np.cos(phase) * self.travel, self.size)


_GROUPS = (FastButtons, FastGremlins, FastHazards, FastPillars, FastVases)
_OBJECTS = (*_GROUPS, FastGoal, FastPushBox, FastSigwalls)
OBJECTS: dict[str, type] = {cls.__name__.removeprefix("Fast"): cls for cls in _OBJECTS}
AGENTS: dict[str, type] = {"Ant": FastAnt, **dict.fromkeys(("Car", "Doggo", "Point", "Racecar"), FastAgent)}
