"""Safety-Gymnasium from the unmodified 1.0.0 wheel on a current stack, faster and with identical numbers.

``make_safety_gymnasium`` makes an environment. After this package has been imported, ``import
safety_gymnasium`` imports the wheel adapted to the installed stack. This package does not import torch. It
leaves nothing patched outside the ``safety_gymnasium`` package.
"""

from safe_components.envs.safety_gymnasium.compat import load_safety_gymnasium
from safe_components.envs.safety_gymnasium.make import make_safety_gymnasium, safety_gymnasium_ids
from safe_components.envs.safety_gymnasium.textures import plain_textures

__all__ = ["load_safety_gymnasium", "make_safety_gymnasium", "plain_textures", "safety_gymnasium_ids"]
