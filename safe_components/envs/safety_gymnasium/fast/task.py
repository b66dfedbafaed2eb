"""Tasks that simulate, observe and reset with the least work that gives the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import mujoco
import numpy as np

from safe_components.envs.safety_gymnasium.fast.index import Index, index_of
from safe_components.envs.safety_gymnasium.fast.mixin import Mixin
from safe_components.envs.safety_gymnasium.fast.observation import ObservationPlan
from safe_components.envs.safety_gymnasium.fast.world import WorldTemplate, differences
from safe_components.envs.safety_gymnasium.textures import plain_textures

# Before MuJoCo 3 every evaluation rounded the quaternions in qpos again, so every evaluation is needed.
_REPEATABLE = int(mujoco.__version__.partition(".")[0]) >= 3
_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL)
# How often moving each kind of world has equaled compiling it; -1 if it has differed.
_MOVABLE: dict[tuple[str, ...], int] = {}
_COMPARISONS = 3


class FastTask(Mixin):
    """A ``BaseTask`` with the numbers of the package's own code, bit for bit."""

    _needs_textures = False
    _template: WorldTemplate | None = None
    _plan: ObservationPlan | None = None
    # True while positions, velocities and contacts are those that MuJoCo last computed. Only
    # ``FastBuilder.step`` sets it.
    _settled = False

    @property
    def lookup(self) -> Index:
        """Look-ups into the present model."""
        return index_of(self.world.engine, self.agent)

    def reset(self) -> None:
        """Draw a layout and bring the world to it."""
        self._settled = False
        self._build()
        self.world_info.reset_layout = {name: xy.copy() for name, xy in self.world_info.layout.items()}

    def _build(self) -> None:
        if self.placements_conf.placements is None:
            self._build_placements_dict()
            self.random_generator.set_placements_info(
                self.placements_conf.placements, self.placements_conf.extents, self.placements_conf.margin
            )
        self.world_info.layout = self.random_generator.build_layout()
        config = self.world_info.world_config_dict = self._build_world_config(self.world_info.layout)
        if self.world is None:
            self._compile_first(config)
        elif self._is_movable(config):
            assert self._template is not None
            self._template.reset(config)
            # The package does one after compiling and one after rebuilding; each refines the warm start.
            mujoco.mj_forward(self.model, self.data)
            mujoco.mj_forward(self.model, self.data)
        else:
            with plain_textures(not self._needs_textures):
                self.world.rebuild(config, state=False)
        if self.viewer:
            self._update_viewer(self.model, self.data)

    def _compile_first(self, config: dict[str, Any]) -> None:
        # The package can only be imported after it has been adapted.
        from safety_gymnasium.world import World

        self.world = World(self.agent, self._obstacles, config)
        with plain_textures(not self._needs_textures):
            self.world.build()
        self._template = WorldTemplate(self.model, self.data, self.agent.z_height)

    def _is_movable(self, config: dict[str, Any]) -> bool:
        """Return whether moving the objects of this kind of world equals compiling it; try a few times."""
        kinds = (*config["geoms"], *config["free_geoms"], *config["mocaps"])
        key = (type(self).__name__, self.agent_name, self.floor_conf.type, *kinds)
        times = _MOVABLE.get(key, 0)
        if 0 <= times < _COMPARISONS:
            differing = self._compare(config)
            _MOVABLE[key] = -1 if differing else times + 1
            if differing:
                warnings.warn(
                    f"MuJoCo {mujoco.__version__} compiles {key[0]} for {key[1]} to other values of "
                    f"{', '.join(differing)} than moving its objects gives; its resets compile instead, "
                    "which is slower and gives the package's own numbers",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return _MOVABLE[key] > 0

    def _compare(self, config: dict[str, Any]) -> list[str]:
        world, engine = self.world, self.world.engine
        model, data = engine.model, engine.data
        assert self._template is not None
        self._template.reset(config)
        try:
            with plain_textures():
                world.parse(config)
                world.build()
            return differences(model, engine.model)
        finally:
            engine.update(model, data)

    def simulation_forward(self, action: np.ndarray) -> bool:
        """Apply an action for one step of the environment, by default 10 steps of the physics."""
        noise = None
        if self.action_noise:
            noise = self.action_noise * self.random_generator.randn(self.agent.body_info.nu)
        self.agent.apply_action(action, noise)
        conf, model, data = self.sim_conf, self.model, self.data
        # This is drawn even if its outcome is certain, because the draw advances the random stream.
        steps = int(self.random_generator.binomial(conf.frameskip_binom_n, conf.frameskip_binom_p))
        if self._mocaps:
            mocaps = list(self._mocaps.values())
            for _ in range(steps):
                for mocap in mocaps:
                    mocap.move()
                mujoco.mj_step(model, data)
        elif steps:
            mujoco.mj_step(model, data, nstep=steps)
        mujoco.mj_forward(model, data)
        return False

    def _forward(self) -> None:
        """Make the changes that ``mj_forward`` would make.

        In a settled state, ``mj_forward`` recomputes the same positions and velocities. Only the constraint
        solver starts from its last solution and can change its result. Without constraints nothing changes.
        """
        if not (self._settled and _REPEATABLE):
            mujoco.mj_forward(self.model, self.data)
        elif self.data.nefc:
            mujoco.mj_forwardSkip(self.model, self.data, _VELOCITY_STAGE, 0)

    def calculate_cost(self) -> dict[str, Any]:
        """Return every cost of the present state, and their sum."""
        self._forward()
        cost: dict[str, Any] = {}
        for obstacle in self._obstacles:
            cost.update(obstacle.cal_cost())
        if self._is_load_static_geoms and self.static_geoms_contact_cost:
            total = 0.0
            for _ in range(self.lookup.touching(frozenset(self.static_geoms_names))):
                total += self.static_geoms_contact_cost
            cost["cost_static_geoms_contact"] = total
        cost["cost_sum"] = sum(value for key, value in cost.items() if key.startswith("cost_"))
        return cost

    def obs(self) -> Any:
        """Return the observation of the present state."""
        if not self.observation_flatten or self.observe_vision:
            return self._own.obs(self)
        self._forward()
        index = self.lookup
        if self._plan is None or self._plan.space is not self.observation_space:
            self._plan = ObservationPlan(self, index)
        observation = self._plan.fill(self, index)
        if np.isnan(observation @ observation):
            raise AssertionError(f"the observation contains NaN: {observation}")
        return observation


class FastButtonTask(FastTask):
    """A ``ButtonLevel0`` or one of its subclasses."""

    @property
    def goal_achieved(self) -> bool:
        """Whether the agent touches the goal button."""
        return self.lookup.touching(frozenset((f"button{self.buttons.goal_button}",))) > 0
