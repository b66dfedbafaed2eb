"""make_collector over every kind of worker."""

import functools
import importlib.util

import pytest
import torch
from episodes import check_sums, constant_policy, summed
from torch import nn

from safe_components.collectors import make_collector
from safe_components.envs import PointCircle, make_env

CIRCLE = functools.partial(make_env, "PointCircle", num_envs=3, max_episode_steps=10)
SAFETY = functools.partial(make_env, "SafetyPointCircle1-v0", num_envs=2, max_episode_steps=7)


def collect(make, policy=None, **kwargs):
    torch.manual_seed(0)
    collector = make_collector(make, policy, **kwargs)
    try:
        return [batch.clone() for batch in collector]
    finally:
        collector.shutdown()


@pytest.mark.parametrize("make", [CIRCLE, SAFETY])
def test_no_episode_leaks_into_the_next(make):
    copies = make().batch_size[0]
    batches = collect(lambda: summed(make()), frames_per_batch=copies * 16, total_frames=copies * 48, seed=0)
    data = torch.cat(batches, 1)
    assert data.shape == (copies, 48)
    done = data["next", "done"].squeeze(-1)
    limit = 10 if make is CIRCLE else 7
    assert done[:, limit - 1 :: limit].all()
    assert done.sum() == copies * (48 // limit)
    # the next step continues where this one ended, unless the episode did
    continues = (data["next", "observation"][:, :-1] == data["observation"][:, 1:]).all(-1)
    assert (continues == ~done[:, :-1]).all()
    assert not data["done"].any()
    check_sums(data)
    ids = data["collector", "traj_ids"]
    assert ((ids[:, 1:] == ids[:, :-1]) == ~done[:, :-1]).all()


def test_one_seed_one_batch():
    runs = [collect(CIRCLE, frames_per_batch=60, total_frames=60, seed=s)[0] for s in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert not (runs[0]["observation"] == runs[2]["observation"]).all()


def test_the_policy_is_shared_in_this_process():
    policy = constant_policy(0.5)
    collector = make_collector(CIRCLE, policy, frames_per_batch=30, total_frames=60)
    batches = iter(collector)
    assert (next(batches)["action"] == 0.5).all()
    nn.init.constant_(policy.module.bias, -0.25)
    assert (next(batches)["action"] == -0.25).all()
    collector.shutdown()


def test_a_policy_may_be_a_function():
    batch = collect(
        CIRCLE, lambda td: td.set("action", -td["observation"][..., :2]), frames_per_batch=30, total_frames=30
    )[0]
    assert torch.equal(batch["action"], -batch["observation"][..., :2])


@pytest.mark.parametrize("sync", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_workers_collect_different_episodes_and_take_new_weights(sync):
    make = SAFETY if sync else CIRCLE
    policy = None if sync else constant_policy(0.5)
    collector = make_collector(
        make, policy, frames_per_batch=24, total_frames=96, num_workers=2, sync=sync, seed=5
    )
    try:
        batches = []
        for batch in collector:
            batches.append(batch.clone())
            if policy is not None:
                nn.init.constant_(policy.module.bias, -0.25)
                collector.update_policy_weights_()
    finally:
        collector.shutdown()
    assert sum(batch.numel() for batch in batches) >= 96
    if sync:
        assert batches[0].shape == (2, 2, 6)  # workers, copies, steps
        starts = batches[0]["observation"][:, :, 0].flatten(0, 1)
        assert starts.unique(dim=0).shape[0] == 4
        actions = batches[0]["action"]
        assert not torch.equal(actions[0], actions[1])
    else:
        assert (batches[0]["action"] == 0.5).all()
        assert (batches[-1]["action"] == -0.25).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TorchRL's Ray collector warns about TorchRL's own classes
def test_ray_collects_like_processes(one_ray):
    ray = pytest.importorskip("ray")
    common = {"include_dashboard": False, "object_store_memory": 80_000_000}
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR", **common)
    try:
        collector = make_collector(
            functools.partial(CIRCLE, num_envs=2),
            constant_policy(0.5),
            frames_per_batch=24,
            total_frames=48,
            num_workers=2,
            backend="ray",
            seed=3,
        )
        collector.update_policy_weights_()
        batches = [batch.clone() for batch in collector]  # its length fails in TorchRL 0.14.1
        collector.shutdown()
    finally:
        ray.shutdown()
    assert [batch.shape for batch in batches] == [(2, 2, 6)] * 2  # workers, copies, steps
    starts = batches[0]["observation"][:, :, 0].flatten(0, 1)
    assert starts.unique(dim=0).shape[0] == 4
    assert all((batch["action"] == 0.5).all() for batch in batches)
    assert torch.equal(batches[1]["observation"][:, :, 0], batches[0]["next", "observation"][:, :, -1])


def test_ray_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # whether it is installed or not
    with pytest.raises(ImportError, match=r"pip install 'safe_components\[ray\]'"):
        make_collector(CIRCLE, None, frames_per_batch=30, num_workers=1, backend="ray")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"make_env_fn": PointCircle()}, "make_env_fn must be a function that returns an environment"),
        ({"num_workers": -1}, "num_workers must be an integer of at least 0"),
        ({"frames_per_batch": 0}, "frames_per_batch must be at least 1"),
        ({"total_frames": 10}, "total_frames must be -1 or at least frames_per_batch 30"),
        ({"backend": "threads"}, "backend must be one of"),
        ({"backend": "ray"}, "needs num_workers of at least 1"),
        ({"sync": False}, "needs num_workers of at least 1"),
        ({"make_env_fn": functools.partial(CIRCLE, seed=3), "num_workers": 2}, "fixes seed=3"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_collector(**({"make_env_fn": CIRCLE, "policy": None, "frames_per_batch": 30} | arguments))
