"""Makes the Safety-Gymnasium subpackage importable alone, also on a Python without torch.

It needs no torch, so small virtual environments can test it with other versions of Python, MuJoCo and NumPy:

    python -m venv /tmp/stack
    /tmp/stack/bin/pip install pytest "gymnasium>=1.1,<2" "mujoco==2.3.3" "numpy<2" xmltodict pyyaml imageio
    /tmp/stack/bin/pip install --no-deps safety-gymnasium==1.0.0
    PYTHONPATH=. /tmp/stack/bin/python -m pytest -c /dev/null -W error -p no:cacheprovider \\
        tests/envs/test_safety_gymnasium*.py
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "data" / "safety_gymnasium_reference.npz"


def replace_parent() -> None:
    """Put an empty package in the place of ``safe_components.envs``, whose own code imports torch."""
    parent = types.ModuleType("safe_components.envs")
    parent.__path__ = [str(ROOT / "safe_components" / "envs")]
    sys.modules["safe_components.envs"] = parent


if importlib.util.find_spec("torch") is None:
    replace_parent()
