"""What a run is said to need, against what it then holds; what is there, as the system says it."""

import pytest
import torch

import cvpo
import sac_lag
import td3_lag
from safe_components.critics import ConstrainedQEnsemble
from safe_components.training import (
    Replay,
    Task,
    available_bytes,
    memory,
    memory_needed,
    overlay,
    parse_config,
    require_memory,
)

SIZES = {"observation_dim": 4, "action_dim": 2}


def config(**settings):
    small = {
        "env": {"id": "PointCircle", "num_envs": 4, "frame_skip": 2, "max_episode_steps": 50},
        "replay": {"size": 900, "window": 300},
    }
    return overlay(overlay(cvpo.Config(), small, "small"), settings, "settings")


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("costs", [["walls"], ["walls", "speed"]])
def test_buffers_take_exactly_what_is_said(n_step, costs):
    limits = {"cost_limit": [5.0] * len(costs)}
    settings = config(critics={"n_step": n_step}, env={"cost_keys": costs}, budget=limits)
    replay = Replay.of(settings, window=settings.replay.window)
    replay.extend(Task(settings).warm_up(400, seed=0))
    held = [kept._storage._storage for kept in (replay._transitions, replay._recent)]
    assert [kept.batch_size[0] for kept in held] == [450, 150]  # frames over the frame skip of 2
    sizes = SIZES | {"num_costs": len(costs)}
    both = memory_needed(settings, **sizes, window=settings.replay.window)["buffer"]
    assert both == sum(
        leaf.numel() * leaf.element_size() for kept in held for leaf in kept.values(True, True)
    )
    alone = memory_needed(settings, **sizes)["buffer"]
    assert alone == sum(leaf.numel() * leaf.element_size() for leaf in held[0].values(True, True))
    assert memory_needed(settings, **sizes, window=900)["buffer"] == alone  # then there is one buffer only


def test_networks_take_five_times_their_parameters():
    settings = config(
        policy={"hidden_sizes": [8], "covariance": "full"},
        critics={"hidden_sizes": [24, 16], "cost_members": 3},
    )
    policy = cvpo.make_policy(settings, Task(settings))
    critics = ConstrainedQEnsemble(4, 2, 2, 3, 2, hidden_sizes=(24, 16))
    parameters = sum(p.numel() for module in (policy, critics) for p in module.parameters())
    assert memory_needed(settings, **SIZES, num_costs=2)["networks"] == 5 * 4 * parameters


def test_an_update_grows_with_its_rows_where_they_are_taken_at_once():
    def update(device, batch_size=300, threads=1):
        large = config(
            replay={"batch_size": batch_size},
            critics={"hidden_sizes": [256, 256]},
            policy={"hidden_sizes": [256, 256]},
            run={"device": device, "threads": threads},
        )
        return memory_needed(large, **SIZES, num_costs=1, particles=64)["update"]

    # The scores' two layers alone: three critics, 300 x 64 rows of 2 x 256 numbers of 4 bytes.
    assert update("cuda") > 3 * 300 * 64 * 512 * 4
    assert update("cuda", batch_size=600) == pytest.approx(2 * update("cuda"), rel=1e-6)
    assert update("cpu") < update("cuda")
    assert update("cpu", threads=2) > update("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_an_update_on_cuda_stays_within_what_is_said(tmp_path):
    sizes = "--replay.batch-size 300 --estep.num-particles 64 --policy.hidden-sizes 256 256 "
    sizes += "--critics.hidden-sizes 256 256"
    flags = "--env.id PointCircle --env.num-envs 64 --device cuda --total-frames 12000 "
    flags += "--log-interval 6000 --loggers --no-progress"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arguments = [*flags.split(), *sizes.split(), "--run-dir", str(tmp_path / "run")]
    cvpo.launch(cvpo.main, cvpo.Config, arguments)
    held = torch.cuda.max_memory_allocated() - before
    settings = parse_config(cvpo.Config, [*sizes.split(), "--device", "cuda"])
    needed = memory_needed(settings, **SIZES, num_costs=1, particles=64, window=settings.replay.window)
    assert held <= 1.1 * sum(needed.values()) + 2**24  # the environments, and what the allocator rounds up


def test_what_does_not_fit_is_said_with_its_bytes(monkeypatch):
    settings = config(replay={"size": 10**10}, critics={"hidden_sizes": [32, 16]})
    task = Task(settings)
    monkeypatch.setattr(memory, "available_bytes", lambda _: 2**30)
    with pytest.raises(ValueError, match=r"needs 325,\d{3},\d{3},\d{3} bytes") as said:
        require_memory(settings, task, particles=16)
    message = str(said.value)
    assert "on cpu, where 1,073,741,824 are free" in message
    assert "buffer 325,000,000,000 (replay.size 10000000000)" in message
    assert "(replay.batch_size 256, estep.num_particles 16, critics.hidden_sizes 32 16)" in message
    assert "JAX" not in message
    settings = config(replay={"size": 10**10}, env={"id": "brax/SafetyAntVelocity"})
    task.device = torch.device("cuda")
    with pytest.raises(ValueError, match="; JAX holds memory, too: XLA_PYTHON_CLIENT_PREALLOCATE=false"):
        require_memory(settings, task)
    monkeypatch.setattr(memory, "available_bytes", lambda _: None)
    require_memory(settings, task, particles=16)  # the system does not say: the run may try
    monkeypatch.setattr(memory, "available_bytes", lambda _: 2**30)
    require_memory(config(), task, particles=16)


@pytest.mark.parametrize("recipe", [cvpo, sac_lag, td3_lag], ids=lambda recipe: recipe.__name__)
def test_every_recipe_with_a_buffer_asks_before_it_starts(recipe, tmp_path):
    size = ["--replay.size", "100000000000000"]
    flags = ["--env.id", "PointCircle", "--env.frame-skip", "2", *size, "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"^error: the run needs 3,250,0.* bytes of memory on cpu"):
        recipe.launch(recipe.main, recipe.Config, flags)
    assert not (tmp_path / "run").exists()


def system(root, *, available, groups="", mounts="", files=None):
    """A /proc that says so, and control groups beside it."""
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available} kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    (proc / "self" / "mounts").write_text(mounts.format(root=root))
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return proc


CPU = torch.device("cpu")


def test_the_machine_says_what_is_free(tmp_path):
    assert available_bytes(CPU, system(tmp_path, available=50)) == 50 * 1024
    assert available_bytes(CPU, tmp_path / "nothing") is None
    assert available_bytes(torch.device("meta")) is None


def test_a_control_group_may_allow_less(tmp_path):
    files = {
        "group/a/b/memory.max": "max\n",
        "group/a/b/memory.current": "10\n",
        "group/a/b/memory.stat": "anon 10\n",
        "group/a/memory.max": "30000\n",
        "group/a/memory.current": "20000\n",
        "group/a/memory.stat": "anon 15000\ninactive_file 5000\n",
    }
    mounts = "cgroup2 {root}/group cgroup2 rw 0 0\n"
    proc = system(tmp_path, available=50, groups="0::/a/b\n", mounts=mounts, files=files)
    assert available_bytes(CPU, proc) == 30000 - 20000 + 5000  # the group above counts, too


def test_the_first_version_of_control_groups_as_well(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": "9000\n",
        "memory/memory.usage_in_bytes": "7000\n",
        "memory/memory.stat": "total_inactive_file 100\n",
    }
    mounts = "cgroup {root}/cpu cgroup rw,cpu 0 0\ncgroup {root}/memory cgroup rw,memory 0 0\n"
    groups = "5:cpu:/x\n4:memory:/not/visible/inside\n"
    proc = system(tmp_path, available=50, groups=groups, mounts=mounts, files=files)
    assert available_bytes(CPU, proc) == 2100


def test_a_system_without_control_groups_allows_what_the_machine_does(tmp_path):
    proc = system(tmp_path, available=50)
    (proc / "self" / "mounts").unlink()
    assert available_bytes(CPU, proc) == 50 * 1024
    (proc / "self" / "mounts").write_text("proc /proc proc rw 0 0\ncgroup /x cgroup rw,cpu 0 0\n")
    (proc / "self" / "cgroup").write_text("3:cpu:/a\n2:memory:/a\n0::/a\n")
    assert available_bytes(CPU, proc) == 50 * 1024
