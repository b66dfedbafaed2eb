"""Training without a cost: MPO, SAC and TD3, from the flag to the table of a study."""

import numpy as np
import pytest
import torch
from small_runs import restored

import cvpo
import evaluate
import sac_lag
import td3_lag
from safe_components.training import Task, parse_config

NOTHING = ("--env.id", "cost_envs:Free-v0", "--env.max-episode-steps", 50, "--cost-limit", "none")
SMALL = (*NOTHING, "--total-frames", 600, "--eval-interval", 600)
# What each choice trains without a cost: its multipliers have no elements.
VARIANTS = {
    "mpo": (cvpo, ()),
    "td3": (td3_lag, ()),
    "mpo by the dual": (cvpo, ("--multiplier", "dual", "--budget.feedback", "pid")),
    "sac": (sac_lag, ("--multiplier", "gradient")),
    "sac with cal": (sac_lag, ("--augmentation", "cal")),
}


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        pytest.param(*variant, id=name, marks=[] if name in ("mpo", "td3") else pytest.mark.slow)
        for name, variant in VARIANTS.items()
    ],
)
def test_no_cost_is_learnt_priced_or_reported(recipe, flags, tmp_path, training, capsys):
    rows, learner = training(recipe, *SMALL, *flags)
    assert [name for name in rows if "cost" in name or "lambda" in name or "price" in name] == []
    assert all(np.isfinite(rows[name]).all() for name in rows if not name.startswith(("eval", "slope")))
    assert (tmp_path / "run" / "curves.png").is_file()
    if recipe is cvpo:
        assert learner.estep.solution.lam.shape == (0,)
        np.testing.assert_allclose(rows["estep_kl"], 0.1, rtol=1e-6)  # the reward alone fills the ball
        assert (tmp_path / "run" / "diagnosis.png").is_file()
    elif recipe is td3_lag:  # the plain deterministic policy gradient
        np.testing.assert_allclose(rows["loss_actor"], -rows["actor_q_reward"], rtol=1e-5)
        evaluate.main(evaluate.Config(tmp_path / "run", episodes=2))
        table = capsys.readouterr().out.partition("over 2 episodes")[2].partition("over a limit")[0]
        assert "reward" in table
        assert "cost" not in table
    fresh = restored(recipe, tmp_path / "run", learner)
    before, after = learner.state_dict(), fresh.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key.endswith(("weight", "bias")))


def test_a_limit_without_a_cost_is_refused_and_so_is_no_limit_by_accident():
    flags = ["--env.id", "PointCircle", "--env.frame-skip", "1", "--env.cost-keys"]
    with pytest.raises(ValueError, match="1 limits, but PointCircle has 0 costs; --cost-limit none trains"):
        Task(parse_config(cvpo.Config, flags))
    with pytest.raises(SystemExit):  # such as --cost-limit $UNSET
        parse_config(cvpo.Config, ["--cost-limit"])
    assert Task(parse_config(cvpo.Config, [*flags[:4], "--cost-limit", "none"])).num_costs == 0
