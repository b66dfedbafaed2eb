"""Environments whose steps write ``reward`` [..., 1] and ``cost`` [..., m]."""

from safe_components.envs.base import EnvironmentFailure, StateError
from safe_components.envs.check_env import EnvReport, Finding, check_env
from safe_components.envs.frame_skip import default_frame_skip
from safe_components.envs.from_factory import env_from_factory
from safe_components.envs.gymnasium_batch import GymnasiumBatch
from safe_components.envs.make_env import lives_on_device, make_env
from safe_components.envs.point_circle import PointCircle
from safe_components.envs.safety_gymnasium import make_safety_gymnasium, safety_gymnasium_ids
from safe_components.envs.sampled_limit import SampledLimit
from safe_components.envs.saute import Saute

__all__ = [
    "EnvReport",
    "EnvironmentFailure",
    "Finding",
    "GymnasiumBatch",
    "PointCircle",
    "SampledLimit",
    "Saute",
    "StateError",
    "check_env",
    "default_frame_skip",
    "env_from_factory",
    "lives_on_device",
    "make_env",
    "make_safety_gymnasium",
    "safety_gymnasium_ids",
]
