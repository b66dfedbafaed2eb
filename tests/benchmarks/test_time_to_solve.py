"""The benchmark of the time to solve: when a task counts as solved, and both kinds of training."""

import doctest

import pytest
import time_to_solve
from time_to_solve import Goal, Row, main, solved, train, train_peer

GOAL = Goal(reward=10.0, limit=5.0, frames=40_000)


def test_the_examples_hold():
    assert doctest.testmod(time_to_solve).failed == 0


@pytest.mark.parametrize(
    ("rewards", "costs", "frames"),
    [
        ([0, 9, 12, 12], [0, 0, 0, 0], 15_000),  # (9 + 12) / 2
        ([12, 12, 12, 12], [9, 9, 2, 0], 20_000),  # the cost falls later
        ([20, 20, 20, 20], [0, 0, 0, 0], 10_000),  # not before a whole window
        ([20, 20, 20, 20], [6, 6, 6, 6], None),
        ([9, 9, 9, 9], [0, 0, 0, 0], None),
    ],
)
def test_solved_is_a_mean_over_the_last_frames(rewards, costs, frames):
    rows = [Row(5000 * (i + 1), i, *pair) for i, pair in enumerate(zip(rewards, costs, strict=True))]
    found = solved(rows, GOAL)
    assert (None if found is None else found.frames) == frames


@pytest.mark.slow
def test_a_recipe_is_trained_and_its_rows_are_read(tmp_path):
    task = tmp_path / "task.yaml"
    env = "env: {id: PointCircle, max_episode_steps: 50}"
    task.write_text(f"all: {{{env}, collect.updates_per_frame: 0.01, run: {{total_frames: 1}}}}")
    rows = train("cvpo", str(task), Goal(1.0, 25.0, 12_000), seed=0)
    assert [row.frames for row in rows] == [10_000, 12_000]  # the random steps are 5,000
    assert all(row.seconds > 0 and row.cost >= 0 for row in rows)


def stand_in(path, body):
    """Write a program in place of the peers' interpreter."""
    path.write_text(f"#!/usr/bin/env python3\nimport json, os, sys\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_peer_is_asked_over_a_pipe_and_ended_once_it_has_solved(tmp_path, capsys):
    body = """
settings, answers = json.loads(sys.argv[2]), os.fdopen(int(sys.argv[3]), "w", buffering=1)
assert settings.pop("task") == "SafetyCarRun-v0"
assert settings == {"agent": "CVPO", "cost_limit": 10.0, "frames": 70000, "seed": 3}
for frames in range(10_000, 10_000_000, 10_000):
    row = {"frames": frames, "seconds": frames / 1000, "reward": frames / 100, "cost": 1.0}
    print(json.dumps(row), file=answers)
"""
    python = stand_in(tmp_path / "python", body)
    flags = ["--tasks", "SafetyCarRun-v0", "--sides", "FSRL-CVPO", "--frames", "70000", "--seeds", "3"]
    main([*flags, "--peers-python", str(python)])
    assert (
        "| SafetyCarRun-v0 | FSRL-CVPO | 60,000 | 60 | 600.0 / 1.0 at 60,000 | 1000 |"
        in capsys.readouterr().out
    )


def test_a_peer_that_dies_is_quoted(tmp_path):
    python = stand_in(tmp_path / "python", "sys.exit('no module named fsrl')")
    with pytest.raises(RuntimeError, match="no module named fsrl"):
        list(train_peer("CVPO", "SafetyCarRun-v0", GOAL, 0, python))


def test_without_the_peers_it_names_the_command(tmp_path, capsys):
    flags = ["--tasks", "SafetyCarRun-v0", "--sides", "FSRL-CVPO", "--peers-python", str(tmp_path / "none")]
    main(flags)
    assert "not installed: make bench-peers" in capsys.readouterr().out
