"""Import the unmodified safety-gymnasium 1.0.0 wheel on current Python, NumPy, Gymnasium and MuJoCo.

The wheel was written for Python 3.8-3.10, gymnasium 0.28, MuJoCo 2.3.3 and NumPy 1. The names that it needs
from them exist only during its import. Afterwards only the ``safety_gymnasium`` modules themselves hold
adapted names. pygame and gymnasium-robotics are not needed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

import gymnasium
import mujoco
import numpy as np
import xmltodict
from gymnasium.wrappers.utils import RunningMeanStd

from safe_components.envs.safety_gymnasium import textures
from safe_components.envs.safety_gymnasium.checks import checked_action
from safe_components.envs.safety_gymnasium.normalize import NormalizeObservation, NormalizeReward

VERSION = "1.0.0"
INSTALL = f"pip install --no-deps safety-gymnasium=={VERSION}"

# Modules of gymnasium.wrappers that 1.0 removed, with what the wheel imports from them.
_MOVED: dict[str, dict[str, Any]] = {
    "autoreset": {"AutoResetWrapper": gymnasium.wrappers.Autoreset},
    "compatibility": {"EnvCompatibility": None},
    "env_checker": {"PassiveEnvChecker": gymnasium.wrappers.PassiveEnvChecker},
    "normalize": {
        "NormalizeObservation": NormalizeObservation,
        "NormalizeReward": NormalizeReward,
        "RunningMeanStd": RunningMeanStd,
    },
    "time_limit": {"TimeLimit": gymnasium.wrappers.TimeLimit},
}
_NAME = "safety_gymnasium"
_MARK = "_adapted_by_safe_components"


class _Color(np.ndarray):
    """An array that is hashable by identity, because Python >= 3.11 refuses unhashable dataclass defaults."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # ndarray declares it None


class _Model:
    """An ``MjModel`` whose ``jnt`` accepts the one-element id arrays that MuJoCo >= 3.3 refuses."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def jnt(self, key: Any) -> Any:
        return self._model.jnt(key.item() if isinstance(key, np.ndarray) else key)


def load_safety_gymnasium() -> types.ModuleType:
    """Import ``safety_gymnasium``, adapted to the installed stack; later calls return the same module.

    Importing ``safe_components.envs`` is enough for ``import safety_gymnasium`` to do the same.

    Raises:
        ImportError: if safety-gymnasium is not installed, or if its version is not 1.0.0.
    """
    package = sys.modules.get(_NAME)
    if package is not None and not hasattr(package, _MARK):
        _forget()
    _find()
    return importlib.import_module(_NAME)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the package for ``import safety_gymnasium``, and has it adapted while it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs the package with stand-ins for what it needs of older packages, and then adapts it."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def create_module(self, spec: Any) -> Any:
        return self._own.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        _forget(but=_NAME)  # a failed import before this module was loaded leaves submodules behind
        folder = _find()
        stand_ins = _stand_ins()
        sys.modules.update(_own_modules(folder) | stand_ins)
        try:
            self._own.exec_module(module)
            _adapt(module)
            importlib.import_module(f"{_NAME}.wrappers")  # it needs the stand-ins
        except BaseException:
            _forget()
            raise
        finally:
            for name in stand_ins:
                sys.modules.pop(name, None)
        setattr(module, _MARK, True)


def _find() -> str:
    """Return the folder of the installed package without importing it."""
    try:
        version = importlib.metadata.version("safety-gymnasium")
    except importlib.metadata.PackageNotFoundError:
        version = None
    spec = None
    if version is not None:
        spec = importlib.machinery.PathFinder.find_spec(_NAME)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"safety-gymnasium is not installed; install it with `{INSTALL}`")
    if version != VERSION:
        raise ImportError(
            f"safety-gymnasium {version} is installed, but only {VERSION} is supported; "
            f"install it with `{INSTALL}`"
        )
    return spec.submodule_search_locations[0]


def _forget(but: str | None = None) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == _NAME and name != but]:
        del sys.modules[name]


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(names)
    return module


def _missing(what: str, hint: str = "") -> Callable[..., NoReturn]:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{what} is not supported with gymnasium {gymnasium.__version__}{hint}")

    return fail


def _own_modules(folder: str) -> dict[str, types.ModuleType]:
    """Return the modules of the package that must not be imported as they are."""
    # assets.color owns every array that is a dataclass default. Load it first and make the arrays hashable.
    name = "safety_gymnasium.assets.color"
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "assets", "color.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"safety-gymnasium is incomplete; reinstall it with `{INSTALL}`")
    color = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(color)
    vars(color)["COLOR"] = {key: value.view(_Color) for key, value in color.COLOR.items()}
    modules = {name: color}
    # Multi-agent tasks need gymnasium-robotics, and vector environments subclass private parts of
    # gymnasium 0.28. The single-agent tasks need neither.
    name = "safety_gymnasium.tasks.safe_multi_agent.safe_mujoco_multi"
    modules[name] = _module(name, make_ma=_missing("a multi-agent task"))
    name = "safety_gymnasium.vector"
    modules[name] = _module(name, make=_missing("safety_gymnasium.vector"))
    return modules


def _stand_ins() -> dict[str, types.ModuleType]:
    """Return stand-ins for the old modules of gymnasium that the wheel imports from."""
    modules = {f"gymnasium.wrappers.{module}": names for module, names in _MOVED.items()}
    return {
        name: _module(name, **names)
        for name, names in modules.items()
        if importlib.util.find_spec(name) is None
    }


def _adapt(package: types.ModuleType) -> None:
    """Replace the names inside the package that fail on the installed stack."""
    from safety_gymnasium import builder, world
    from safety_gymnasium.bases import base_agent, underlying
    from safety_gymnasium.tasks.safe_velocity import safety_ant_velocity_v0 as ant
    from safety_gymnasium.tasks.safe_velocity import safety_humanoid_velocity_v0 as humanoid
    from safety_gymnasium.utils import keyboard_viewer, registration

    # Their ``make`` reads fields that gymnasium 1.0 dropped from EnvSpec.
    vars(package)["make"] = registration.make = _missing(
        "safety_gymnasium.make", "; use safe_components.envs.make_safety_gymnasium"
    )
    # obs_sensor calls float() on one-element arrays, an error since NumPy 2.4.
    base_agent.float = lambda value: np.asarray(value).item()
    base_agent.BaseAgent._init_jnt_sensors = _scalar_joint_ids(base_agent.BaseAgent._init_jnt_sensors)
    # A reset compiles its XML through world.xmltodict, so the textures are chosen there.
    world.xmltodict = types.SimpleNamespace(parse=xmltodict.parse, unparse=textures.unparse)
    builder.Builder.close = _close_viewers
    builder.Builder.step = _checked_step(builder.Builder.step)
    # Since MuJoCo 3 a reset no longer normalizes the quaternion of the floating base in place.
    if int(mujoco.__version__.partition(".")[0]) >= 3:
        for env in (ant.SafetyAntVelocityEnv, humanoid.SafetyHumanoidVelocityEnv):
            env.reset_model = _normalized(env.reset_model)
    # gymnasium >= 1.0 asks viewers for the frame's size.
    underlying.OffScreenViewer = _sized(underlying.OffScreenViewer)
    keyboard_viewer.KeyboardViewer.__init__ = _keyboard_viewer_init


def _scalar_joint_ids(init_jnt_sensors: Callable[[Any], None]) -> Callable[[Any], None]:
    def _init_jnt_sensors(self: Any) -> None:
        engine = self.engine
        self.engine = types.SimpleNamespace(model=_Model(engine.model), data=engine.data)
        try:
            init_jnt_sensors(self)
        finally:
            self.engine = engine

    return _init_jnt_sensors


def _checked_step(step: Callable[..., Any]) -> Callable[..., Any]:
    # The original casts with np.array(action, copy=False), which refuses lists since NumPy 2.
    def checked_step(self: Any, action: Any) -> Any:
        return step(self, checked_action(self, action))

    return checked_step


def _normalized(reset_model: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def reset_model_and_normalize(self: Any) -> Any:
        reset_model(self)
        mujoco.mj_normalizeQuat(self.model, self.data.qpos)
        return self._get_obs()

    return reset_model_and_normalize


def _close_viewers(self: Any) -> None:
    viewers = self.task._viewers
    while viewers:
        viewers.popitem()[1].close()
    self.task.viewer = None


def _sized(viewer: Any) -> Any:
    def make_viewer(model: Any, data: Any) -> Any:
        return viewer(model, data, model.vis.global_.offwidth, model.vis.global_.offheight)

    return make_viewer


def _keyboard_viewer_init(self: Any, model: Any, data: Any, custom_key_press_callback: Any) -> None:
    size = model.vis.global_
    super(type(self), self).__init__(model, data, size.offwidth, size.offheight)
    self._custom_key_press_callback = custom_key_press_callback


sys.meta_path.insert(0, _Finder())
