"""Batches of fewer steps than an n-step window: nothing to store yet, and nothing lost."""

import pytest
import torch
from tensordict import TensorDict

import cvpo
import sac_lag
from plumbing import n_step_transitions
from safe_components.training import read_metrics

RECIPES = [cvpo, sac_lag]


def random_steps(envs, length):
    """Steps with random rewards and ends; an observation is its environment and its time."""
    torch.manual_seed(0)
    env, time = torch.meshgrid(torch.arange(envs), torch.arange(length + 1), indexing="ij")
    observation = torch.stack([env, time], -1).float()
    terminated, truncated = torch.rand(2, envs, length, 1) < 0.15
    following = TensorDict(
        observation=observation[:, 1:],
        reward=torch.randn(envs, length, 1),
        cost=torch.rand(envs, length, 2),
        terminated=terminated,
        truncated=truncated,
        done=terminated | truncated,
        batch_size=[envs, length],
    )
    action = torch.randn(envs, length, 2)
    return TensorDict(
        observation=observation[:, :-1], action=action, next=following, batch_size=[envs, length]
    )


def by_definition(steps, n, gamma):
    """The transition from every step whose window is known to be complete, by its (environment, time)."""
    envs, length = steps.shape
    found = {}
    for env in range(envs):
        for time in range(length - n):
            reward, cost, size = 0.0, torch.zeros(2), 0
            for size in range(1, n + 1):
                step = steps[env, time + size - 1]["next"]
                reward += gamma ** (size - 1) * float(step["reward"])
                cost = cost + gamma ** (size - 1) * step["cost"]
                if step["done"]:
                    break
            found[env, time] = (reward, cost, size, bool(step["terminated"]))
    return found


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "lengths", [(20,), (1,) * 20, (2, 1, 1, 4, 12), (3, 17), (4, 16), (1, 19), (19, 1)], ids=str
)
def test_no_transition_is_lost_or_doubled_however_steps_are_cut(n, lengths):
    config = cvpo.Config(n_step=n, gamma=0.9)
    transitions_of, steps = n_step_transitions(config), random_steps(3, 20)
    parts, seen = [], 0
    for part in steps.split(lengths, dim=1):
        parts.append(transitions_of(part))
        seen += part.shape[1]
        assert sum(map(len, parts)) == 3 * max(seen - n, 0)
    assert len({frozenset(part.keys(True, True)) for part in parts}) == 1  # the empty ones' too
    found = torch.cat(parts)
    expected = by_definition(steps, n, config.gamma)
    whole = steps[:, : 20 - n].reshape(-1)
    where = [tuple(row) for row in found["observation"].int().tolist()]
    assert sorted(where) == sorted(expected)
    order = sorted(range(len(where)), key=where.__getitem__)
    assert torch.equal(found["action"][order], whole["action"])
    for transition, (env, time) in zip(found, where, strict=True):
        reward, cost, size, terminated = expected[env, time]
        following = transition["next"]
        torch.testing.assert_close(following["reward"].item(), reward, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(following["cost"], cost)
        assert transition["steps_to_next_obs"].item() == size
        assert following["observation"].tolist() == [env, time + size]
        assert bool(following["terminated"]) == terminated


def run(recipe, directory, *flags):
    where = ["--resume", str(directory)] if (directory / "config.yaml").exists() else [*START, str(directory)]
    recipe.launch(recipe.main, recipe.Config, [*where, *flags])


START = (
    "--env.id PointCircle --env.frame-skip 1 --env.max-episode-steps 20 --hidden-sizes 16 16 --seed 0 "
    "--batch-size 16 --buffer-size 2000 --updates-per-frame 0.05 --critic-warmup 2 --frames-per-batch 8 "
    "--eval-interval 0 --log-interval 40 --loggers --threads 1 --no-progress --run-dir"
).split()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_run_is_resumed_with_batches_of_one_step(recipe, tmp_path):
    flags = ("--env.num-envs", "8", "--warmup-frames", "80")
    run(recipe, tmp_path / "run", *flags, "--total-frames", "120")
    run(recipe, tmp_path / "run", "--total-frames", "200")
    assert read_metrics(tmp_path / "run" / "metrics.csv")["frames"][-1] == 200


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_more_environments_than_the_random_steps_reach(recipe, tmp_path):
    flags = ("--env.num-envs", "16", "--frames-per-batch", "16", "--warmup-frames", "16")
    run(recipe, tmp_path / "run", *flags, "--total-frames", "160")
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    # Four random steps of each, one more than the window holds back; then one step a batch.
    assert rows["frames"].tolist() == [80, 128, 160]
