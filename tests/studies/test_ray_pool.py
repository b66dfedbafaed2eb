"""Members on Ray end, stop and tell like those on this machine."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from pretended_runs import (
    interrupt_after_start,
    killed_at,
    parent_of,
    pretended_member,
    starts,
    wait_until,
)

import study
from safe_components.studies import RayPool, run_members
from safe_components.studies.pool import last_words, library_threads, spawn
from safe_components.studies.ray_pool import _until_done


@pytest.fixture
def in_the_background(one_ray):
    """What is started ignores SIGINT, as in a shell's background, and as CI often does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cluster(in_the_background):
    """The address of a Ray cluster of this machine alone, started as an administrator would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield f"127.0.0.1:{port}"
        process.terminate()


def listens(address):
    host, port = address.split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def start_ray(address, slots):
    """On a busy machine Ray may not be up within its own 30 seconds."""
    for _ in range(3):
        with contextlib.suppress(ConnectionError):
            return RayPool(address, slots, timeout=120)
    return RayPool(address, slots, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "cluster"])
def test_ray_runs_stops_and_tells_like_this_machine(tmp_path, capsys, request, in_the_background, where):
    address, slots = "local", 2
    if where == "cluster":
        address, slots = request.getfixturevalue("cluster"), None
        wait_until(lambda: listens(address))
    pool = start_ray(address, slots)
    assert pool.slots == 2
    try:
        members = [pretended_member(tmp_path, seed) for seed in (0, 13, 1)]
        outcome = run_members(members, pool, progress=False)
        assert [m.config.run.seed for m in outcome.failed] == [13]
        assert {m.config.run.seed for m in outcome.finished} == {0, 1}
        assert "seed 13 does not train" in capsys.readouterr().out
        endless = [pretended_member(tmp_path, seed, 10_000, nap=0.02) for seed in (2, 3)]
        outcome = interrupt_after_start(endless, pool, signals=1)
        assert {m.config.run.seed for m in outcome.stopped} == {2, 3}
        assert all(any((m.directory / "checkpoint").iterdir()) for m in endless)
    finally:
        pool.close()


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_process_are_told_and_done_again(tmp_path, capsys, one_ray):
    pool = start_ray("local", 3)
    try:
        members = [pretended_member(tmp_path, seed, 1000, nap=0.02) for seed in (0, 1, 2)]
        by_worker, by_process, other = members
        with killed_at(100, by_worker.directory, parent_of), killed_at(100, by_process.directory):
            outcome = run_members(members, pool, progress=False)
        assert {m.name for m in outcome.failed} == {by_worker.name, by_process.name}
        assert outcome.finished == [other]
        printed = capsys.readouterr().out
        assert f"{by_worker.name} FAILED: error: its task on Ray was lost (WorkerCrashedError: " in printed
        assert f"{by_process.name} FAILED: error: the process was killed by signal 9" in printed
        outcome = run_members(members, pool, progress=False)
        assert {m.name for m in outcome.finished} == {by_worker.name, by_process.name}
        # The process of the lost worker saved and left.
        assert [starts(member) for member in members] == [["new", "resumed"], ["new", "new"], ["new"]]
    finally:
        pool.close()


def test_a_ray_address_without_an_answer_is_one_line(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    words = ["--run-dir", str(tmp_path / "study"), "--env.id", "PointCircle", "--variants", "cvpo"]
    with pytest.raises(SystemExit, match=f"^error: no Ray cluster answers at 127.0.0.1:{port} .*ray start"):
        study.run([*words, "--ray", f"127.0.0.1:{port}"])
    assert not (tmp_path / "study").exists()


def test_a_ray_address_that_listens_and_says_nothing_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="within 3 s"):
            RayPool(address, None, timeout=3.0)


def test_a_canceled_task_asks_its_process_to_save_and_returns_its_status(tmp_path):
    """Ray raises KeyboardInterrupt in a canceled task; here the same signal comes from another thread."""
    log = tmp_path / "output.log"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('error: saved'))\n"
        "print('trains', flush=True)\n"
        "time.sleep(600)\n"
    )

    def cancel():
        wait_until(lambda: log.is_file() and "trains" in log.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        assert _until_done(spawn, [sys.executable, "-c", code], str(log), library_threads(1)) == 1
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert last_words(log) == "error: saved"


def test_ray_that_is_not_installed_or_does_not_start_is_one_line(monkeypatch):
    def fail(**_):
        raise RuntimeError("The node timed out. More of it")

    monkeypatch.setattr(importlib.import_module("ray"), "init", fail)
    with pytest.raises(ConnectionError, match=r"did not start on this machine \(The node timed out\); is it"):
        RayPool("local", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'safe_components\[ray\]'"):
        RayPool("local", 1)


def test_ray_imports_without_warnings():
    subprocess.run([sys.executable, "-W", "error", "-c", "import ray"], check=True)
