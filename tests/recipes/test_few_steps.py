"""Many environments and short batches: nothing to store yet, and still a run that goes on."""

import pytest

import cvpo
import sac_lag
from safe_components.training import load_config, read_metrics, with_run

RECIPES = pytest.mark.parametrize("recipe", [cvpo, sac_lag], ids=lambda recipe: recipe.__name__)
SMALL = (
    "--env.max-episode-steps 20 --replay.batch-size 16 --collect.updates-per-frame 0.05 "
    "--critics.warmup-updates 2 --log-interval 40"
).split()


@RECIPES
def test_a_run_is_resumed_with_batches_of_one_step(recipe, tmp_path, training):
    batches = ("--env.num-envs", 8, "--collect.frames-per-batch", 8, "--collect.warmup-frames", 80)
    training(recipe, *SMALL, *batches, "--total-frames", 120)
    recipe.main(with_run(load_config(recipe.Config, tmp_path / "run"), total_frames=200))
    assert read_metrics(tmp_path / "run" / "metrics.csv")["frames"][-1] == 200


@RECIPES
def test_more_environments_than_the_random_steps_reach(recipe, training):
    batches = ("--env.num-envs", 16, "--collect.frames-per-batch", 16, "--collect.warmup-frames", 16)
    rows, _ = training(recipe, *SMALL, *batches, "--total-frames", 160)
    # Four random steps of each, one more than the window holds back; then one step a batch.
    assert rows["frames"].tolist() == [80, 128, 160]
