"""Collecting ahead: one batch old, the same each time, layout and errors of the workers."""

import functools
import os
import signal
import time

import pytest
import torch
from episodes import check_sums, constant_policy, summed
from tensordict.nn import TensorDictModule
from torch import nn

from safe_components.collectors import OverlappedCollector, make_collector
from safe_components.envs import make_env

CIRCLE = functools.partial(make_env, "PointCircle", max_episode_steps=10)


def summed_circle(num_envs):
    return summed(CIRCLE(num_envs=num_envs))


def collect(num_workers, copies, batches=4, seed=7, pause=0.0):
    """Batches of a policy whose action is the number of batches learned from."""
    policy = constant_policy(0.0)
    collector = OverlappedCollector(
        functools.partial(summed_circle, copies // num_workers),
        policy,
        frames_per_batch=copies * 6,
        num_workers=num_workers,
        seed=seed,
    )
    out = []
    try:
        for batch in collector:
            out.append(batch.clone())
            time.sleep(pause)  # long enough for a worker to see weights that change too early
            with torch.no_grad():
                policy.module.bias.add_(1.0)
            collector.update_policy_weights_()
            if len(out) == batches:
                break
    finally:
        collector.shutdown()
    assert not policy.module.bias.is_shared()
    return out


@pytest.fixture(scope="module")
def two_workers():
    return collect(num_workers=2, copies=4)


def test_the_policy_is_one_batch_old_and_constant_within_a_batch(two_workers):
    # in this process batch k + 1 has the weights after batch k; here it has those after batch k - 1
    assert [batch["action"].unique().tolist() for batch in two_workers] == [[0], [0], [1], [2]]
    assert [batch["action"].unique().tolist() for batch in collect(1, 4, pause=0.05)] == [[0], [0], [1], [2]]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_batches_whatever_the_load(two_workers):
    again = collect(num_workers=2, copies=4, pause=0.05)
    for a, b in zip(two_workers, again, strict=True):
        assert (a.select("observation", "action", "next") == b.select("observation", "action", "next")).all()
    assert not torch.equal(two_workers[0]["observation"], collect(2, 4, 1, seed=8)[0]["observation"])


@pytest.mark.parametrize(("num_workers", "copies"), [(2, 4), (1, 1)])
def test_batches_are_copies_by_consecutive_steps(num_workers, copies, two_workers):
    batches = two_workers if num_workers == 2 else collect(num_workers, copies)
    data = torch.cat(batches, 1)
    assert data.shape == (copies, 24)
    done = data["next", "done"].squeeze(-1)
    assert done.nonzero()[:, 1].reshape(copies, 2).tolist() == [[9, 19]] * copies
    continues = (data["next", "observation"][:, :-1] == data["observation"][:, 1:]).all(-1)
    assert (continues == ~done[:, :-1]).all()
    check_sums(data)
    assert data["observation"][:, 0].unique(dim=0).shape[0] == copies  # no two start alike


def test_a_worker_that_dies_is_an_error():
    collector = OverlappedCollector(
        functools.partial(summed_circle, 2), constant_policy(0.0), frames_per_batch=20, num_workers=1
    )
    try:
        batches = iter(collector)
        next(batches)
        time.sleep(0.2)  # the next batch is there by now, its worker idle
        (worker,) = collector._collector.procs
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        with pytest.raises(ChildProcessError, match="has died"):
            [next(batches) for _ in range(2)]
    finally:
        collector.shutdown()


@pytest.mark.slow
def test_a_loop_that_is_asked_to_stop_does_not_wait_for_a_frozen_worker():
    asked = []
    collector = OverlappedCollector(
        functools.partial(summed_circle, 2),
        constant_policy(0.0),
        frames_per_batch=20,
        num_workers=1,
        stopping=lambda: bool(asked),
        patience=3.0,
    )
    batches = iter(collector)
    next(batches)
    next(batches)
    (worker,) = collector._collector.procs
    os.kill(pid := worker.pid, signal.SIGSTOP)
    asked.append(1)
    began = time.monotonic()
    assert len(list(batches)) <= 1  # the worker may have sent one before it froze
    assert time.monotonic() - began > 3.0
    collector.shutdown(timeout=1000.0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class Breaks(nn.Module):
    """An action that stops the environment with an error after some steps."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, observation):
        self.steps += 1
        bad = float("nan") if self.steps > 15 else 0.0
        return torch.full((*observation.shape[:-1], 2), bad)


def test_an_error_in_a_worker_is_an_error_here(capfd):
    policy = TensorDictModule(Breaks(), in_keys=["observation"], out_keys=["action"])
    collector = OverlappedCollector(
        functools.partial(summed_circle, 2), policy, frames_per_batch=20, num_workers=1
    )
    try:
        with pytest.raises(ChildProcessError, match="printed above"):
            for _ in collector:
                pass
    finally:
        collector.shutdown()
    assert "FloatingPointError" in capfd.readouterr().err  # the worker's own


def test_bad_input():
    with pytest.raises(ValueError, match="num_workers is 0, must be at least 1"):
        OverlappedCollector(CIRCLE, constant_policy(0.0), frames_per_batch=20, num_workers=0)
    with pytest.raises(ValueError, match="fixes seed=3"):
        OverlappedCollector(
            functools.partial(CIRCLE, seed=3), constant_policy(0.0), frames_per_batch=20, num_workers=2
        )


def test_workers_leave_the_threads_of_this_process_as_they_are():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        collector = make_collector(
            functools.partial(CIRCLE, num_envs=2), None, frames_per_batch=20, num_workers=1
        )
        during = torch.get_num_threads()
        collector.shutdown()
        assert during == 2
    finally:
        torch.set_num_threads(before)
