"""Put one navigation environment on the fast path, without touching any other.

The objects of the environment keep their state. Each gets a subclass of its own class that adds methods from
``task``, ``objects`` and ``layout``. Nothing is replaced in the package itself, so environments on its own
code path run beside it in the same process. Objects of classes from outside the package, such as a user's own
task, keep their own methods.
"""

from __future__ import annotations

from typing import Any

from safe_components.envs.safety_gymnasium.checks import checked_action
from safe_components.envs.safety_gymnasium.fast.layout import FastRandomGenerator
from safe_components.envs.safety_gymnasium.fast.mixin import Mixin
from safe_components.envs.safety_gymnasium.fast.objects import AGENTS, OBJECTS
from safe_components.envs.safety_gymnasium.fast.task import FastButtonTask, FastTask

_CLASSES: dict[tuple[type, type], type] = {}


class FastBuilder(Mixin):
    """A ``Builder`` whose step tells its task when nothing has changed between two evaluations."""

    def step(self, action: Any) -> tuple[Any, float, float, bool, bool, dict[str, Any]]:
        """Take a step, as ``Builder.step`` does."""
        action = checked_action(self, action)
        task = self.task
        task.simulation_forward(action)
        task._settled = True
        try:
            reward = self._reward()
            info = dict(self._cost())
            cost = info["cost_sum"]
            task.specific_step()
            if task.goal_achieved:
                info["goal_met"] = True
                task._settled = False
                self._continue_or_end()
            if not task.agent.is_alive():
                self.terminated = True
            self.steps += 1
            if self.steps >= task.num_steps:
                self.truncated = True
            if self.render_parameters.mode == "human":
                self.render()
            return task.obs(), reward, cost, self.terminated, self.truncated, info
        finally:
            task._settled = False

    def _continue_or_end(self) -> None:
        # The package can only be imported after it has been adapted.
        from safety_gymnasium.utils.common_utils import ResamplingError

        task = self.task
        if not task.mechanism_conf.continue_goal:
            self.terminated = True
            return
        task.update_layout()
        try:
            task.update_world()
        except ResamplingError:
            if not task.mechanism_conf.terminate_resample_failure:
                raise
            self.terminated = True


def accelerate(env: Any) -> None:
    """Put a navigation environment on the fast path; leave any other as it is.

    Args:
        env: a ``safety_gymnasium.builder.Builder`` that has not been reset yet.
    """
    task = getattr(env, "task", None)
    if task is None or task.debug or not _is_own(task):
        return
    for obstacle in task._obstacles:
        if _is_own(obstacle) and type(obstacle).__name__ in OBJECTS:
            _put_before(obstacle, OBJECTS[type(obstacle).__name__])
    if _is_own(task.agent) and type(task.agent).__name__ in AGENTS:
        _put_before(task.agent, AGENTS[type(task.agent).__name__])
    _put_before(task.random_generator, FastRandomGenerator)
    _put_before(task, FastButtonTask if hasattr(task, "buttons") else FastTask)
    _put_before(env, FastBuilder)
    task._needs_textures = env.render_mode is not None or task.observe_vision


def _is_own(thing: Any) -> bool:
    return type(thing).__module__.partition(".")[0] == "safety_gymnasium"


def _put_before(thing: Any, methods: type) -> None:
    """Make ``thing`` an instance of a subclass of its class with the methods of ``methods``."""
    cls = type(thing)
    if (methods, cls) not in _CLASSES:
        # The subclass keeps the class's name, by which the package compares classes and finds files.
        members = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        for base in reversed(methods.__mro__[:-1]):
            members |= {name: value for name, value in vars(base).items() if not name.startswith("__")}
        # Inheriting from both would change the memory layout, and then the class could not be assigned.
        _CLASSES[methods, cls] = type(cls.__name__, (cls,), {**members, "_own": cls})
    thing.__class__ = _CLASSES[methods, cls]
