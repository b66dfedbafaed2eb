"""CVPO learns: on PointCircle it earns reward inside the limit, and the E-step's cost term is why.

So does CVPO with a squashed policy, whose M-step is that of any policy.
"""

import pytest

import cvpo
from safe_components.training import read_metrics

pytestmark = pytest.mark.slow

LIMIT = 25.0
# Three seeds came to a reward of 134 to 155 and a cost of 12 to 16 by 200,000 frames; random actions have 0
# and 40. Without the cost term the cost is 149 at 120,000. That is with the multipliers of the trust region
# and a large cap of lambda: what the settings have in their place pays off later.
REWARD = 100.0
FLAGS = (
    "--settings v0.1/PointCircle --trust-region hard --trust-region.kl-mean 0.02 --trust-region.kl-cov 0.005 "
    "--trust-region.lr 0.1"
).split()
CAP = ("--multiplier.max", "20")


def last_episodes(directory, frames, *flags):
    """Mean reward and cost of the episodes of the last 40,000 frames, with sampled actions."""
    flags = ["--total-frames", str(frames), "--eval-interval", "0", *FLAGS, *flags]
    cvpo.launch(cvpo.main, cvpo.Config, [*flags, "--run-dir", str(directory), "--no-progress", "--loggers"])
    rows = read_metrics(directory / "metrics.csv")
    late = rows["frames"] > frames - 40_000
    assert late.sum() == 2
    return rows["episode_reward"][late].mean(), rows["episode_cost"][late].mean()


def test_cvpo_learns_inside_the_limit(tmp_path):
    reward, cost = last_episodes(tmp_path / "run", 200_000, "--seed", "0", *CAP)
    assert reward >= REWARD
    assert cost <= LIMIT


def test_it_does_not_without_the_cost_term(tmp_path):
    _, cost = last_episodes(tmp_path / "run", 120_000, "--seed", "0", "--multiplier", "none")
    assert cost > 2 * LIMIT


def test_a_squashed_policy_learns_within_the_spread_of_the_gaussian(tmp_path):
    """By 40,000 frames two seeds of the Gaussian came to 131 and 168, two of this policy to 147 and 166."""
    task = "--env.id PointCircle --env.frame-skip 1 --total-frames 40000 --eval-interval 0 --seed 1".split()
    words = [*task, "--policy", "tanh", "--no-progress", "--loggers", "--run-dir", str(tmp_path / "run")]
    cvpo.launch(cvpo.main, cvpo.Config, words)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    late = rows["frames"] > 30_000
    assert rows["episode_reward"][late].mean() > 120
    assert rows["episode_cost"][late].mean() < LIMIT
