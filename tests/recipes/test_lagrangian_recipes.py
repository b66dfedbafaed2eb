"""SAC-Lag, TD3-Lag and DDPG-Lag: short real runs, what moves their multipliers, resuming, errors."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpg_lag
import sac_lag
import td3_lag
from plumbing import lagrangian, make_multiplier
from safe_components.ops import q_cost_limit
from safe_components.training import load_config, read_metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
RECIPES = [sac_lag, td3_lag, ddpg_lag]
# Four environments end an episode in each batch of 200 frames; the random steps before end none.
SMALL = (
    "--env.id PointCircle --env.num-envs 4 --env.frame-skip 1 --env.max-episode-steps 50 --seed 0 "
    "--hidden-sizes 16 16 --batch-size 32 --buffer-size 2000 --updates-per-frame 0.02 --warmup-frames 40 "
    "--critic-warmup 5 --frames-per-batch 200 --log-interval 200 --eval-interval 0 "
    "--checkpoint-interval 400 --threads 1 --no-progress --loggers --cost-limit 2"
).split()
# Enough noise to reach the walls within 50 steps; SAC has its own, which does with this seed.
NOISE = {sac_lag: ["--seed", "1"], td3_lag: ["--exploration-std", "3"], ddpg_lag: ["--exploration-std", "3"]}


def run(recipe, directory, *flags, frames=1000):
    arguments = [*SMALL, *NOISE[recipe], "--run-dir", str(directory), "--total-frames", str(frames), *flags]
    recipe.launch(recipe.main, recipe.Config, arguments)
    return read_metrics(directory / "metrics.csv")


def recomputed(directory, recipe, rows, costs=1):
    """The multiplier's sequence, from the costs in the table alone."""
    names = ["episode_cost", *(f"episode_cost_{i}" for i in range(1, costs))]
    multiplier = make_multiplier(load_config(recipe.Config, directory))
    observed = np.stack([rows[name] for name in names], -1)
    return observed, np.array([multiplier.update(torch.as_tensor(cost)).tolist() for cost in observed])


@pytest.mark.parametrize("multiplier", ["gradient", "pid"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_the_multiplier_follows_the_episodes_collected(recipe, multiplier, tmp_path):
    flags = ["--multiplier", multiplier, "--multiplier-lr", "0.1", "--multiplier-init", "0.5"]
    flags += ["--cost-limit", "0.2"]
    rows = run(recipe, tmp_path, *flags, "--eval-interval", "400", "--eval-episodes", "2")
    assert rows["frames"].tolist() == [240, 440, 640, 840, 1040]
    assert rows["updates"].tolist() == [4, 8, 12, 16, 20]
    assert rows["episodes"].tolist() == [4, 4, 4, 4, 4]
    assert np.isfinite(rows["eval_cost"]).tolist() == [False, True, False, True, True]
    assert all(np.isfinite(rows[name]).all() for name in rows if not name.startswith("eval"))
    assert {name for name in rows if f"`{name}`" not in PAGE.read_text()} == set()
    observed, expected = recomputed(tmp_path, recipe, rows)
    assert observed.max() > 0.2  # over the limit at least once
    assert np.abs(np.diff(rows["lambda"])).max() > 1e-3
    np.testing.assert_allclose(rows["lambda"], expected[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_resuming_restores_multiplier_optimisers_and_targets(recipe, tmp_path, monkeypatch):
    kept = {}

    def snapshot(components):
        buffer = components["buffer"][:]
        return {
            **{f"multiplier.{k}": v.clone() for k, v in components["multiplier"].state_dict().items()},
            **{f"actor.{k}": v.clone() for k, v in components["actor"].state_dict().items()},
            **{f"critic.{k}": v.clone() for k, v in components["critic_td"].state_dict().items()},
            **{
                f"{name}.{i}": state["exp_avg_sq"].clone()
                for name in ("policy_optim", "critic_optim")
                for i, state in enumerate(components[name].state.values())
            },
            "buffer": buffer["observation"].clone(),
        }

    class Spy(lagrangian.Run):
        def __init__(self, config, name, **components):
            self._parts = components
            super().__init__(config, name, **components)
            if config.resume is not None:
                kept["restored"] = snapshot(components)

        def save(self):
            kept["saved"] = snapshot(self._parts)
            return super().save()

    monkeypatch.setattr(lagrangian, "Run", Spy)
    run(recipe, tmp_path, "--multiplier", "pid", "--multiplier-lr", "0.1", "--pid-kd", "0.5", frames=600)
    saved = kept["saved"]
    recipe.main(dataclasses.replace(load_config(recipe.Config, tmp_path), total_frames=1000))
    assert saved.keys() == kept["restored"].keys()
    assert any(name.startswith("policy_optim") for name in saved)
    assert any("target_policy_params" in name for name in saved) == (recipe is not sac_lag)
    for name, value in saved.items():
        assert torch.equal(value, kept["restored"][name]), name
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows["frames"].tolist() == [240, 440, 640, 840, 1040]
    _, expected = recomputed(tmp_path, recipe, rows)
    np.testing.assert_allclose(rows["lambda"], expected[:, 0], rtol=1e-5, atol=1e-6)


def test_sac_lag_with_two_costs_and_two_limits(tmp_path):
    flags = ["--env.cost-keys", "walls", "speed", "--cost-limit", "2", "1", "--multiplier-lr", "0.1", "--cal"]
    flags += ["--multiplier-init", "1"]
    # Episodes long enough to reach the walls.
    flags += ["--env.max-episode-steps", "200", "--frames-per-batch", "800", "--log-interval", "800"]
    rows = run(sac_lag, tmp_path, *flags, frames=3200)
    observed, expected = recomputed(tmp_path, sac_lag, rows, costs=2)
    assert observed[:, 0].max() > 2.0
    for i, name in enumerate(["lambda", "lambda_1"]):
        np.testing.assert_allclose(rows[name], expected[:, i], rtol=1e-5, atol=1e-6)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-3
    assert np.isfinite(rows["actor_q_cost_1"]).all()


def test_cal_replaces_the_multiplier_by_the_augmented_one(tmp_path):
    """One update a row, so that its terms are in the table: [λ + c (Q_c - d_Q)]_+ with d_Q of 50 steps."""
    flags = ["--cal", "--cal-augmentation", "3", "--updates-per-frame", "0.005", "--multiplier-init", "4"]
    rows = run(sac_lag, tmp_path, *flags)
    limit = q_cost_limit(2.0, sac_lag.Config().gamma, 50).item()
    np.testing.assert_allclose(rows["q_cost_limit"], limit, rtol=1e-6)
    expected = np.maximum(rows["lambda"] + 3.0 * (rows["actor_q_cost"] - limit), 0.0)
    np.testing.assert_allclose(rows["lambda_effective"], expected, rtol=1e-4, atol=1e-5)
    assert (rows["lambda_effective"] != rows["lambda"]).all()


def test_a_capped_multiplier_is_reported(tmp_path):
    rows = run(ddpg_lag, tmp_path, "--multiplier-lr", "5", "--multiplier-max", "0.25", "--cost-limit", "0")
    assert rows["lambda"].max() == 0.25
    assert rows["lambda_capped"].max() == 1.0


def test_the_policy_delay_counts_critic_updates(tmp_path):
    rows = run(td3_lag, tmp_path / "never", "--policy-delay", "100")
    assert "loss_actor" not in rows
    assert (np.diff(rows["loss_q_cost"]) != 0).all()
    rows = run(td3_lag, tmp_path / "every", "--policy-delay", "2", frames=400)
    assert np.isfinite(rows["loss_actor"]).all()


@pytest.mark.parametrize(
    ("recipe", "flags", "said"),
    [
        (sac_lag, ["--cost-limit", "25", "10"], "2 limits"),
        (sac_lag, ["--init-alpha", "0"], "init_alpha"),
        (sac_lag, ["--cal", "--cal-critics", "0"], "num_cost_members=0"),
        (sac_lag, ["--cal", "--cal-augmentation", "-1"], "augmentation"),
        (sac_lag, ["--cost-std", "-1"], "std_coef"),
        (sac_lag, ["--multiplier-lr", "0", "--multiplier", "gradient"], "lr=0.0"),
        (td3_lag, ["--policy-delay", "0"], "policy_delay"),
        (td3_lag, ["--smoothing-std", "-1"], "std=-1.0"),
        (td3_lag, ["--exploration-std", "-1"], "exploration_std"),
        (td3_lag, ["--multiplier-max", "-1"], "max_value"),
        (ddpg_lag, ["--exploration-std", "nan"], "exploration_std"),
        (ddpg_lag, ["--pid-kp", "-1"], "kp"),
        (ddpg_lag, ["--hidden-sizes", "0"], "hidden_sizes"),
    ],
)
def test_bad_input_is_one_line_before_any_work(recipe, flags, said, tmp_path):
    arguments = [*SMALL, "--run-dir", str(tmp_path / "run"), *flags]
    with pytest.raises(SystemExit, match=said) as stop:
        recipe.launch(recipe.main, recipe.Config, arguments)
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_an_option_of_another_algorithm_is_refused(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        recipe.launch(recipe.main, recipe.Config, [*SMALL, "--trust-region", "none"])
    assert stop.value.code == 2
    assert "--trust-region" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_cuda(recipe, tmp_path):
    rows = run(recipe, tmp_path, "--device", "cuda")
    assert np.isfinite(rows["loss_actor"]).all()
