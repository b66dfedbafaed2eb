"""The learner's benchmark: its counts, its times, and its message without the peers."""

import doctest
import itertools
import json
import sys
from pathlib import Path

import learner_gemm
import learner_report
import pytest
import torch
from learner import main, parse
from learner_gemm import CRITICS, M_STEP, PARTICLES, CountFlops, GemmLimit, Sizes, flops, update_products
from learner_peers import DEFAULT_PYTHON, FsrlUpdate
from learner_update import E_STEP, PHASES, SAMPLE, TimedUpdate, make_config

SMALL = Sizes(
    states=3, particles=4, m_iterations=2, hidden_sizes=(5, 7), observation=6, actions=2, reward_critics=2
)
DOCS = Path(__file__).parents[2] / "docs"
FLAGS = (
    "--states 8 --particles 4 --m-iterations 2 --hidden-sizes 16 16 --observation 6 --transitions 1000 "
    "--blocks 2 --updates 1 --rows 1"
).split()


@pytest.fixture(autouse=True)
def _threads():
    """The benchmark sets PyTorch's threads; give the other tests theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def timed_update():
    sizes = Sizes(states=64, particles=16, m_iterations=3, hidden_sizes=(64, 48), observation=20, actions=2)
    return sizes, TimedUpdate(sizes, {"critics": {"layer_norm": False, "n_step": 1}}, transitions=2000)


def test_the_operations_are_those_counted_by_hand():
    # Multiply-adds of a policy 6-5-7-5 and of three critics 8-5-7-1, whose first layer is 6-5 and 2-5.
    policy, critic = 6 * 5 + 5 * 7 + 7 * 5, 8 * 5 + 5 * 7 + 7 * 1
    policy_inputs, critic_inputs = 5 * 7 + 7 * 5, 5 * 7 + 7 * 1  # gradients of all inputs but the first
    particles = 3 * policy + 3 * (3 * 6 * 5 + 12 * (2 * 5 + 5 * 7 + 7 * 1))
    critics = 3 * policy + 3 * 3 * (2 * critic + critic + critic_inputs)
    m_step = 2 * 3 * (2 * policy + policy_inputs)
    products = update_products(SMALL)
    assert flops(products, PARTICLES) == 2 * particles
    assert flops(products, CRITICS) == 2 * critics
    assert flops(products, M_STEP) == 2 * m_step
    assert flops(products) == 2 * (particles + critics + m_step)


def test_the_update_executes_the_products_that_are_counted(timed_update):
    sizes, update = timed_update
    with CountFlops() as executed:
        update()
    # Above the count: products of [a, a] matrices, and the state's part again in the particles' first layer.
    assert 1.0 <= executed.total / flops(update_products(sizes)) < 1.03


def test_the_limit_runs_the_products_that_are_counted():
    sizes = Sizes(states=40, particles=64, hidden_sizes=(8, 8), observation=5)  # 2560 rows: in blocks
    limit = GemmLimit(sizes, threads=1)
    with CountFlops() as executed:
        seconds = limit.run()
    assert executed.total == flops(limit.products)
    assert seconds.keys() == {PARTICLES, CRITICS, M_STEP}
    assert min(seconds.values()) > 0.0


def test_phases_hold_the_whole_update(timed_update, monkeypatch):
    _, update = timed_update
    ticks = itertools.count()
    monkeypatch.setattr(update, "clock", lambda: float(next(ticks)))
    (row,) = update.timed(1)
    # Every reading of the clock is one tick after the last. Each phase begins where another ends.
    assert row == dict.fromkeys(PHASES, 1.0)
    assert next(ticks) == len(PHASES) + 1


def test_each_phase_holds_its_own_part(timed_update, monkeypatch):
    _, update = timed_update
    now = [0.0]
    monkeypatch.setattr(update, "clock", lambda: now[0])

    def lasts(seconds, owner, name):
        call = getattr(owner, name)

        def later(*args, **kwargs):
            now[0] += seconds
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, later)

    learner = update.learner
    lasts(1.0, update.replay, "sample")
    lasts(2.0, learner.critics, "update")
    lasts(4.0, learner.particles, "forward")
    lasts(8.0, learner.estep, "forward")
    lasts(16.0, learner.optim, "step")
    (row,) = update.timed(1)
    expected = {SAMPLE: 1.0, CRITICS: 2.0, PARTICLES: 4.0, E_STEP: 8.0, M_STEP: 3 * 16.0}
    assert row == dict.fromkeys(PHASES, 0.0) | expected


def test_the_e_step_is_an_ordinary_one(timed_update):
    _, update = timed_update
    update.metrics()
    update.timed(3)
    metrics = update.metrics()
    assert metrics["feasible"] == 1.0
    assert metrics["lambda"] > 0.01  # the limit binds
    assert metrics["lambda_capped"] == 0.0
    assert metrics["estep_residual"] < 1e-6


def test_later_settings_win_and_leave_the_others():
    config = make_config(SMALL, 100, {"critics": {"n_step": 1}}, {"critics": {"n_step": 2}})
    assert (config.critics.n_step, config.critics.reward_members) == (2, SMALL.reward_critics)
    assert config.critics.hidden_sizes == config.policy.hidden_sizes == SMALL.hidden_sizes


def test_figures_follow_from_the_times():
    products = update_products(SMALL)

    def block(particles, rest, limit, fsrl):
        row = {PARTICLES: particles, M_STEP: rest}
        return {"ours": [row], "products": [{PARTICLES: limit, M_STEP: 0.0}], "fsrl": fsrl, "peak": limit}

    one = [block(3.0, 1.0, 2.0, 8.0), block(6.0, 2.0, 6.0, 8.0), block(4.0, 1.0, 2.0, 15.0)]
    two = [block(1.5, 0.5, 1.0, 4.0), block(3.0, 1.0, 3.0, 4.0), block(3.0, 1.0, 2.0, 4.0)]
    result = learner_report.summary(products, {1: one, 2: two})
    assert result[1]["seconds"]["median"] == 5.0
    assert result[1]["share_of_limit"]["median"] == 0.5
    assert result[1]["peak_flops_per_second"] == 2.0
    assert result[1]["times_fsrl"] == {"median": 2.0, "q1": 1.5, "q3": 2.5}
    assert result[2]["times_one_thread"]["median"] == 2.0
    assert result[1]["flops_per_second"] == flops(products) / 5.0
    assert result[1]["phases"][PARTICLES] == {
        "seconds": 4.0, "products_seconds": 2.0, "flops": flops(products, PARTICLES),
    }  # fmt: skip


def test_the_examples_hold():
    for module in (learner_gemm, learner_report):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


def test_the_page_shows_the_figures_in_the_file():
    page = (DOCS / "performance.md").read_text()
    figures = json.loads((DOCS / "data" / "learner.json").read_text())
    assert learner_report.into_page(page, figures.values()) == page


def test_without_the_peers_it_names_the_command_and_goes_on(tmp_path, capsys):
    file = tmp_path / "figures.json"
    main([*FLAGS, "--peers-python", str(tmp_path / "python"), "--threads", "1", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "make bench-peers" in printed
    assert "| particles |" in printed
    (row,) = json.loads(file.read_text()).values()
    assert row["fsrl"] is None
    figures = row["threads"]["1"]
    assert figures["seconds"]["median"] > figures["products_seconds"]["median"] > 0.0
    assert sum(phase["flops"] for phase in figures["phases"].values()) == row["flops"]
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- figures -->\nold\n<!-- /figures -->\nAfter.\n")
    main(["--given", str(file), "--page", str(page)])
    head = "Before.\n<!-- figures -->\n\n### 1. equal work\n\n    python benchmarks/learner.py "
    assert page.read_text().startswith(head)
    assert f"python benchmarks/learner.py {' '.join(FLAGS)}" in page.read_text()
    assert page.read_text().endswith("|\n<!-- /figures -->\nAfter.\n")
    assert "old" not in page.read_text()


def stand_in(path, body):
    """Write a program in place of the peers' interpreter; it answers on its last argument, a descriptor."""
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nout = os.fdopen(int(sys.argv[-1]), 'w', 1)\n{body}"
    )
    path.chmod(0o755)
    return path


def test_the_peer_is_asked_over_pipes(tmp_path):
    body = (
        "print('imports may print')\n"
        "given = json.loads(sys.argv[-2])\n"
        "print(json.dumps({'flops': given['states'], 'versions': {}}), file=out)\n"
        "for line in sys.stdin: print(json.dumps({'seconds': json.loads(line)['updates'] / 4}), file=out)\n"
    )
    fsrl = FsrlUpdate(SMALL, 1, python=stand_in(tmp_path / "python", body))
    assert fsrl.flops == SMALL.states
    assert [fsrl.seconds(n, 1, "wall") for n in (2, 3)] == [0.5, 0.75]
    fsrl.close()


def test_a_peer_that_dies_is_quoted(tmp_path):
    with pytest.raises(RuntimeError, match="no module named numba"):
        FsrlUpdate(SMALL, 1, python=stand_in(tmp_path / "python", "sys.exit('no module named numba')"))


@pytest.mark.skipif(not DEFAULT_PYTHON.exists(), reason="FSRL is not installed: make bench-peers")
def test_fsrl_does_the_work_it_is_said_to_do():
    sizes = Sizes(states=16, particles=8, m_iterations=2, hidden_sizes=(32, 32), observation=10)
    fsrl = FsrlUpdate(sizes, 1, transitions=1000)
    seconds = fsrl.seconds(1, 1, "cpu")
    fsrl.close()
    assert 0.0 < seconds < 5.0
    # As ours, but with the state's part of the first layer for every particle and a diagonal covariance.
    repeated = 2 * 3 * 16 * (8 - 1) * 10 * 32
    assert fsrl.flops == pytest.approx(flops(update_products(sizes)) + repeated, rel=0.02)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--states 0", "--states 0 must be at least 1"),
        ("--hidden-sizes 16 0", "--hidden-sizes [16, 0] must be at least 1"),
        ("--rows 5", "there are rows 1 to 4"),
        ("--transitions 10 --states 20", "--transitions 10 must be at least --states 20"),
        ("--clock cpu --threads 1 2", "use it with --threads 1"),
    ],
)
def test_bad_input_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(flags.split())
    assert message in capsys.readouterr().err
