"""SAC-Lag, TD3-Lag and DDPG-Lag: short real runs, what moves their multipliers, resuming, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import restored, small

import sac_lag
import td3_lag
from safe_components.ops import q_cost_limit
from safe_components.training import load_config, read_metrics, with_run

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
# Enough noise to reach the walls within 50 steps; SAC has its own, which does with this seed.
NOISE = ("--policy.exploration-std", 3)
RECIPES = {
    "sac_lag": (sac_lag, ("--seed", 1)),
    "td3_lag": (td3_lag, NOISE),
    "ddpg_lag": (td3_lag, (*NOISE, "--algorithm", "ddpg")),
}
recipes = pytest.mark.parametrize(("recipe", "own"), RECIPES.values(), ids=RECIPES)
# Four environments end an episode in each batch of 200 frames; the random steps before end none.
SMALL = ("--total-frames", 1000, "--collect.warmup-frames", 40, "--cost-limit", 2)


def recomputed(directory, recipe, rows, costs=1):
    """The multiplier's sequence, from the costs in the table alone."""
    names = ["episode_cost"] if costs == 1 else ["episode_cost_walls", "episode_cost_speed"]
    config = load_config(recipe.Config, directory)
    multiplier = config.multiplier.make(config.budget.cost_limit)
    observed = np.stack([rows[name] for name in names], -1)
    return observed, np.array([multiplier.update(torch.as_tensor(cost)).tolist() for cost in observed])


MULTIPLIERS = {
    "gradient": ("--multiplier", "gradient", "--multiplier.lr", 0.1, "--multiplier.init", 0.5),
    "pid": ("--multiplier", "pid", "--multiplier.ki", 0.1, "--multiplier.init", 0.5),
}


@pytest.mark.parametrize("multiplier", MULTIPLIERS.values(), ids=MULTIPLIERS)
@recipes
def test_the_multiplier_follows_the_episodes_collected(recipe, own, multiplier, tmp_path, training):
    flags = (*SMALL, *own, *multiplier, "--cost-limit", 0.2, "--eval-interval", 400)
    rows, _ = training(recipe, *flags)
    assert rows["frames"].tolist() == [240, 440, 640, 840, 1040]
    assert rows["updates"].tolist() == [4, 8, 12, 16, 20]
    assert rows["episodes"].tolist() == [4, 4, 4, 4, 4]
    assert np.isfinite(rows["eval_cost"]).tolist() == [False, True, False, True, True]
    assert all(np.isfinite(rows[name]).all() for name in rows if not name.startswith("eval"))
    assert {name for name in rows if f"`{name}`" not in PAGE.read_text()} == set()
    observed, expected = recomputed(tmp_path / "run", recipe, rows)
    assert observed.max() > 0.2  # over the limit at least once
    assert np.abs(np.diff(rows["lambda"])).max() > 1e-3
    np.testing.assert_allclose(rows["lambda"], expected[:, 0], rtol=1e-5, atol=1e-6)


@recipes
def test_resuming_restores_multiplier_optimizers_and_targets(recipe, own, tmp_path, training):
    directory = tmp_path / "run"
    flags = (
        *SMALL,
        *own,
        "--multiplier",
        "pid",
        "--multiplier.ki",
        0.1,
        "--multiplier.kd",
        0.5,
        "--total-frames",
        600,
    )
    _, learner = training(recipe, *flags)
    config = load_config(recipe.Config, directory)
    saved, found = learner.state_dict(), restored(recipe, directory, learner).state_dict()
    moments = saved.pop("_extra_state"), found.pop("_extra_state")
    assert any("target_policy_params" in name for name in saved) == (recipe is not sac_lag)
    assert saved.keys() == found.keys()
    for name, value in saved.items():
        assert torch.equal(value, found[name]), name
    assert set(moments[0]) == {"optim", "critics.optim"}
    for name, optimizer in moments[0].items():
        for index, state in optimizer["state"].items():
            other = moments[1][name]["state"][index]["exp_avg_sq"]
            assert torch.equal(state["exp_avg_sq"], other)
    assert learner.optim.param_groups[0]["lr"].item() == pytest.approx(1e-3 * 0.05)
    recipe.main(with_run(config, total_frames=1000))
    rows = read_metrics(directory / "metrics.csv")
    assert rows["frames"].tolist() == [240, 440, 640, 840, 1040]
    _, expected = recomputed(directory, recipe, rows)
    np.testing.assert_allclose(rows["lambda"], expected[:, 0], rtol=1e-5, atol=1e-6)


def test_sac_lag_with_two_costs_and_two_limits(tmp_path, training):
    flags = (*SMALL, "--seed", 1, "--total-frames", 3200, "--augmentation", "cal")
    flags += ("--env.cost-keys", "walls", "speed", "--cost-limit", 2, 1)
    flags += ("--multiplier", "pid", "--multiplier.ki", 0.1, "--multiplier.init", 1)
    # Episodes long enough to reach the walls.
    flags += ("--env.max-episode-steps", 200, "--collect.frames-per-batch", 800, "--log-interval", 800)
    rows, _ = training(sac_lag, *flags)
    observed, expected = recomputed(tmp_path / "run", sac_lag, rows, costs=2)
    assert observed[:, 0].max() > 2.0
    for i, name in enumerate(["lambda_walls", "lambda_speed"]):
        np.testing.assert_allclose(rows[name], expected[:, i], rtol=1e-5, atol=1e-6)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-3
    assert np.isfinite(rows["actor_q_cost_speed"]).all()


def test_cal_replaces_the_multiplier_by_the_augmented_one(training):
    """One update a row, so that its terms are in the table: [λ + c (Q_c - d_Q)]_+ with d_Q of 50 steps."""
    flags = ("--augmentation", "cal", "--augmentation.coef", 3, "--multiplier", "pid", "--multiplier.init", 4)
    pace = ("--collect.updates-per-frame", 0.005)
    rows, learner = training(sac_lag, *SMALL, "--seed", 1, *flags, *pace)
    limit = q_cost_limit(2.0, sac_lag.Config().critics.gamma, 50).item()
    np.testing.assert_allclose(rows["q_cost_limit"], limit, rtol=1e-6)
    expected = np.maximum(rows["lambda"] + 3.0 * (rows["actor_q_cost"] - limit), 0.0)
    np.testing.assert_allclose(rows["lambda_effective"], expected, rtol=1e-4, atol=1e-5)
    assert (rows["lambda_effective"] != rows["lambda"]).all()
    assert len(learner.critics.critic(torch.zeros(1, 4), torch.zeros(1, 2))[1]) == 4  # cost members


def test_a_capped_multiplier_is_reported(training):
    flags = ("--multiplier", "pid", "--multiplier.ki", 5, "--multiplier.max", 0.25, "--cost-limit", 0)
    rows, _ = training(td3_lag, *SMALL, *NOISE, "--algorithm", "ddpg", *flags)
    assert rows["lambda"].max() == 0.25
    assert rows["lambda_capped"].max() == 1.0


def test_the_policys_delay_counts_updates_of_the_critics(training):
    rows, _ = training(td3_lag, *SMALL, *NOISE, "--algorithm.delay", 100, name="never")
    assert "loss_actor" not in rows
    assert (np.diff(rows["loss_q_cost"]) != 0).all()
    rows, _ = training(td3_lag, *SMALL, *NOISE, "--total-frames", 400, name="every")
    assert np.isfinite(rows["loss_actor"]).all()


def test_ddpg_has_one_reward_critic_and_moves_its_policy_with_every_update(training):
    rows, learner = training(td3_lag, *SMALL, *NOISE, "--algorithm", "ddpg", "--total-frames", 400)
    reward, _ = learner.critics.critic(torch.zeros(1, 4), torch.zeros(1, 2))
    assert len(reward) == 1
    assert learner.optim.state_dict()["state"][0]["step"].item() == rows["updates"][-1]


@pytest.mark.parametrize(
    ("recipe", "flags", "said"),
    [
        (sac_lag, ["--cost-limit", "25", "10"], "2 limits"),
        (sac_lag, ["--entropy.init-alpha", "0"], "entropy.init_alpha"),
        (sac_lag, ["--augmentation", "cal", "--augmentation.cost-members", "0"], "cost_members is 0"),
        (sac_lag, ["--augmentation", "cal", "--augmentation.coef", "-1"], "augmentation.coef"),
        (sac_lag, ["--critics.cost-std", "-1"], "critics.cost_std"),
        (sac_lag, ["--multiplier", "gradient", "--multiplier.lr", "0"], "multiplier.lr is 0.0"),
        (sac_lag, ["--policy.lr", "-1"], "policy.lr is -1.0"),
        (sac_lag, ["--collect.updates-per-frame", "nan"], "collect.updates_per_frame is nan"),
        (td3_lag, ["--algorithm.delay", "0"], "algorithm.delay"),
        (td3_lag, ["--algorithm.smoothing-std", "-1"], "smoothing_std is -1.0"),
        (td3_lag, ["--policy.exploration-std", "-1"], "exploration_std"),
        (td3_lag, ["--multiplier", "pid", "--multiplier.max", "-1"], "multiplier.max"),
        (td3_lag, ["--policy.exploration-std", "nan"], "exploration_std"),
        (td3_lag, ["--multiplier", "pid", "--multiplier.kp", "-1"], "multiplier.kp"),
        (td3_lag, ["--policy.hidden-sizes", "0"], "policy.hidden_sizes"),
        (td3_lag, ["--algorithm", "sac"], "must be one of td3, ddpg"),
    ],
)
def test_bad_input_is_one_line_before_any_work(recipe, flags, said, tmp_path):
    arguments = ["--env.id", "PointCircle", "--run-dir", str(tmp_path / "run"), *flags]
    with pytest.raises(SystemExit, match=said) as stop:
        recipe.launch(recipe.main, recipe.Config, arguments)
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "run").exists()


@recipes
def test_an_option_of_another_algorithm_is_refused(recipe, own, capsys):
    with pytest.raises(SystemExit) as stop:
        small(recipe, *own, "--trust-region", "none")
    assert stop.value.code == 2
    assert "--trust-region" in capsys.readouterr().err


@recipes
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_cuda(recipe, own, training):
    rows, _ = training(recipe, *SMALL, *own, "--device", "cuda")
    assert np.isfinite(rows["loss_actor"]).all()
