"""Safety-Gymnasium on a current stack: the unmodified 1.0.0 wheel, with identical numbers, faster.

``make_safety_gymnasium`` builds an environment; nothing here imports torch, and nothing outside the
``safety_gymnasium`` package is left patched.
"""

from safe_components.envs.safety_gymnasium.compat import load_safety_gymnasium
from safe_components.envs.safety_gymnasium.make import make_safety_gymnasium, safety_gymnasium_ids
from safe_components.envs.safety_gymnasium.textures import plain_textures

__all__ = ["load_safety_gymnasium", "make_safety_gymnasium", "plain_textures", "safety_gymnasium_ids"]
