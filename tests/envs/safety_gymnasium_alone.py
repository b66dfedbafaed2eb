"""Import the Safety-Gymnasium subpackage, also on a Python without torch.

It needs no torch, so its tests can check stacks of other Python, MuJoCo and NumPy versions in small
virtual environments:

    python -m venv /tmp/stack
    /tmp/stack/bin/pip install pytest "gymnasium>=1.1,<2" "mujoco==2.3.3" "numpy<2" xmltodict pyyaml
    /tmp/stack/bin/pip install --no-deps safety-gymnasium==1.0.0
    PYTHONPATH=. /tmp/stack/bin/python -m pytest -c /dev/null -W error -p no:cacheprovider \\
        tests/envs/test_safety_gymnasium*.py
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "data" / "safety_gymnasium_reference.npz"


def safety_gymnasium_room(alone: bool | None = None) -> types.ModuleType:
    """``safe_components.envs.safety_gymnasium``, which is imported without its parent package if ``alone``.

    By default it is where torch is missing.
    """
    if alone is None:
        alone = importlib.util.find_spec("torch") is None
    if alone and "safe_components.envs" not in sys.modules:
        parent = types.ModuleType("safe_components.envs")
        parent.__path__ = [str(ROOT / "safe_components" / "envs")]
        sys.modules["safe_components.envs"] = parent
    return importlib.import_module("safe_components.envs.safety_gymnasium")
