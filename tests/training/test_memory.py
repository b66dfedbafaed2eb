"""What a run keeps in memory does not depend on its length."""

import gc
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from safe_components.training import Averages, EnvConfig, EpisodeStatistics, RecipeConfig, Run, RunConfig

FIRST, LAST = 100, 1100  # iterations, one row each, after which memory is looked at


def open_files():
    return len(os.listdir("/proc/self/fd"))


def clear_caches():
    """Of the interpreter: it keeps up to 4096 names of attributes that were looked up, whoever made them."""
    gc.collect()
    (getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache)()


def tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def batch_of_episodes():
    shape = (4, 10)
    done = torch.zeros(*shape, 1, dtype=torch.bool)
    done[:, -1] = True
    sums = {f"episode_{name}": torch.rand(*shape, 1) for name in ("reward", "cost")}
    step = {"done": done, **sums, "step_count": torch.ones(*shape, 1, dtype=torch.int64)}
    return TensorDict({"observation": torch.rand(*shape, 3), "next": TensorDict(step, shape)}, shape)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_rows_checkpoints_and_episodes_leave_nothing_behind(tmp_path):
    settings = RunConfig(
        run_dir=tmp_path / "run",
        total_frames=10**9,
        loggers=("tensorboard",),
        progress=False,
        checkpoint_interval=1000,
    )
    config = RecipeConfig(env=EnvConfig(id="PointCircle"), run=settings)
    model = torch.nn.Linear(3, 1)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(200), batch_size=8)
    averages, episodes = Averages(), EpisodeStatistics([25.0])
    seen = {}
    batches = (batch_of_episodes() for _ in range(LAST))
    with Run(config, model=model, buffer=buffer) as run:
        tracemalloc.start()
        try:
            for iteration, batch in enumerate(run.watch.each("collecting", batches), start=1):
                since = run.frames
                run.advance(batch.numel())
                episodes.add(batch)
                buffer.extend(batch.select("observation").reshape(-1))
                for _ in range(3):
                    run.count_update()
                    averages.add(
                        {"loss": model(buffer.sample()["observation"]).sum(), "lambda": torch.rand(2)}
                    )
                run.log(episodes.pop() | averages.pop(), shown=("episode_reward",))
                if run.due(settings.checkpoint_interval, since):
                    run.save()
                if iteration in (FIRST, LAST):
                    clear_caches()
                    seen[iteration] = tracemalloc.get_traced_memory()[0], tensors(), open_files()
            largest = tracemalloc.take_snapshot().statistics("lineno")[:5]
        finally:
            tracemalloc.stop()
    (memory, count, files), (later, later_count, later_files) = seen[FIRST], seen[LAST]
    # A number kept per row would be 24,000 bytes, a row 2,000,000.
    assert later - memory < 8_000, "\n".join(map(str, largest))
    assert later_count == count
    assert later_files == files
    assert len(list((run.directory / "checkpoint").iterdir())) == 2
