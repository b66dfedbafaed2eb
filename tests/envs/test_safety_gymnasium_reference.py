"""Episodes recorded on the stock stack (Python 3.10, gymnasium 0.28.1, MuJoCo 2.3.3) are reproduced.

Where MuJoCo 2.3.3 is installed every number must be equal, on both code paths. The last bit of NumPy's
products and sines depends on the processor; they were recorded with AVX2, so the episodes that are compared
bit for bit are played in a process that is held to it. Newer versions of MuJoCo compute other contacts, so
there the comparison stops where a task's physics begins to differ.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import mujoco
import numpy as np
import pytest
from safety_gymnasium_alone import REFERENCE, ROOT

from safe_components.envs import safety_gymnasium as safety

EXACT = mujoco.__version__ == "2.3.3" and platform.machine() == "x86_64"
IS_PINNED = mujoco.__version__.startswith("3.4.")
STEPS = 200
# Task: (steps compared, tolerance) on the pinned MuJoCo, 3.4. Rounding differs from the first step on and
# grows; the steps are those over which it stays an order of magnitude below the tolerance.
PINNED = {
    "SafetyPointCircle1-v0": (50, 1e-5),
    "SafetyPointFadingEasy1-v0": (50, 1e-5),
    "SafetyPointGoal1-v0": (50, 1e-5),
    "SafetyPointPush1-v0": (50, 1e-5),
    "SafetyPointRace1-v0": (50, 1e-5),
    "SafetyPointRun0-v0": (50, 1e-5),
    "SafetyPointButton1-v0": (50, 1e-3),  # the welds that drag gremlins are softer at the first step
    "SafetyAntGoal1-v0": (30, 1e-5),
    "SafetyCarButton2-v0": (100, 1e-5),
    "SafetyDoggoCircle1-v0": (40, 1e-5),
    "SafetyDoggoGoal1-v0": (40, 1e-5),
    "SafetyAntVelocity-v1": (200, 1e-8),
    "SafetyHalfCheetahVelocity-v1": (50, 1e-5),
    "SafetyHopperVelocity-v1": (200, 1e-8),
    "SafetyHumanoidVelocity-v1": (20, 1e-5),
    "SafetySwimmerVelocity-v1": (200, 1e-8),
    "SafetyWalker2dVelocity-v1": (200, 1e-8),
}
# The wheels of these stand on the ground, whose contacts differ from the start: all but the acceleration
# of the reset is compared.
PINNED_RESET_ONLY = ("SafetyCarCircle1-v0", "SafetyCarGoal1-v0", "SafetyRacecarGoal1-v0")


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as data:
        return dict(data)


def record(env_id: str, steps: int, fast: bool) -> dict[str, np.ndarray]:
    env = safety.make_safety_gymnasium(env_id, fast=fast)
    random = np.random.RandomState(7)
    low, high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
    rows = {"observation": [env.reset(seed=123)[0]], "reward": [], "cost": [], "done": []}
    for _ in range(steps):
        observation, reward, cost, terminated, truncated, _ = env.step(random.uniform(low, high))
        done = terminated or truncated
        rows["observation"].append(env.reset()[0] if done else observation)
        rows["reward"].append(reward)
        rows["cost"].append(cost)
        rows["done"].append(done)
    env.close()
    return {key: np.array(value) for key, value in rows.items()}


def test_every_recorded_task_is_compared(reference):
    assert {key.partition("/")[0] for key in reference} == {*PINNED, *PINNED_RESET_ONLY}


def held_to_avx2() -> dict[str, str]:
    """Environment variables under which NumPy and its BLAS round as on a processor with AVX2 and no more."""
    numpy_core = (np._core if hasattr(np, "_core") else np.core)._multiarray_umath
    present = numpy_core.__cpu_features__
    wider = [name for name in numpy_core.__cpu_dispatch__ if name.startswith("AVX512") and present[name]]
    return {"OPENBLAS_CORETYPE": "HASWELL", "NPY_DISABLE_CPU_FEATURES": " ".join(wider)}


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "own"])
def exact_episodes(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("episodes") / "episodes.npz"
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "envs")])
    environment = {**os.environ, **held_to_avx2(), "PYTHONPATH": search}
    command = [sys.executable, "-W", "error", __file__, str(path), *["fast"] * request.param]
    subprocess.run(command, env=environment, check=True, timeout=600)
    with np.load(path) as data:
        return dict(data)


@pytest.mark.skipif(
    not EXACT, reason="bit-for-bit comparison needs MuJoCo 2.3.3 (x86-64), which was recorded"
)
def test_bit_for_bit_on_the_stock_physics(reference, exact_episodes):
    assert exact_episodes.keys() == reference.keys()
    differing = [key for key in reference if not np.array_equal(exact_episodes[key], reference[key])]
    assert differing == []


@pytest.mark.skipif(not IS_PINNED, reason="the tolerances are those of the pinned MuJoCo, 3.4")
@pytest.mark.parametrize("env_id", PINNED)
def test_first_steps_on_the_pinned_physics(reference, env_id):
    steps, tolerance = PINNED[env_id]
    episode = record(env_id, steps, fast=True)
    for key, value in episode.items():
        expected = reference[f"{env_id}/{key}"][: len(value)]
        np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.skipif(not IS_PINNED, reason="the tolerances are those of the pinned MuJoCo, 3.4")
@pytest.mark.parametrize("env_id", PINNED_RESET_ONLY)
def test_reset_on_the_pinned_physics(reference, env_id):
    observation = record(env_id, 0, fast=True)["observation"][0]
    # "accelerometer" comes first among the sensors.
    np.testing.assert_allclose(observation[3:], reference[f"{env_id}/observation"][0, 3:], rtol=0, atol=1e-8)


if __name__ == "__main__":
    with safety.plain_textures():
        episodes = {
            f"{env_id}/{key}": value
            for env_id in (*PINNED, *PINNED_RESET_ONLY)
            for key, value in record(env_id, STEPS, fast="fast" in sys.argv[2:]).items()
        }
    np.savez(sys.argv[1], **episodes)
