"""Fixtures that tests of several folders share."""

import fcntl
import os
from importlib.util import find_spec

# Before PyTorch is imported: two workers with a thread a core each wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when TensorDict imports it: its kernels then run in Python, on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Before Ray is imported: whether clusters ask for a token would hang on what this user's earlier Rays left.
os.environ["RAY_AUTH_MODE"] = "disabled"

from small_runs import train

# A script that test_newton_twins.py runs in a process of its own, without Triton's interpreter.
collect_ignore = ["laws/compile_kernels.py"]
if not find_spec("hypothesis"):  # the dev extra holds it
    collect_ignore.append("laws/test_properties.py")


@pytest.fixture
def training(tmp_path):
    """``training(recipe, *flags, name="run", **settings)`` trains below the test's own directory."""

    def run(recipe, *flags, name="run", **settings):
        return train(recipe, tmp_path / name, *flags, **settings)

    return run


@pytest.fixture
def one_ray(tmp_path_factory):
    """Two Rays that start on one machine at the same time take each other's ports."""
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
