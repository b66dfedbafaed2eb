"""A fast path through the navigation environments, with the numbers of the package's own code bit for bit."""

from safe_components.envs.safety_gymnasium.fast.accelerate import accelerate

__all__ = ["accelerate"]
