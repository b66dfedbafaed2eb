"""Where the random actions stop in the middle of an episode, no n-step window runs on into the next one."""

import pytest
import torch

import sac_lag
from plumbing import off_policy
from safe_components.training import read_metrics

FLAGS = (
    "--env.id PointCircle --env.num-envs 4 --env.frame-skip 1 --env.max-episode-steps 50 --seed 0 "
    "--hidden-sizes 16 16 --batch-size 32 --buffer-size 2000 --updates-per-frame 0.02 --eval-interval 0 "
    "--critic-warmup 1 --frames-per-batch 200 --log-interval 100 --loggers --threads 1 --no-progress "
    "--total-frames 400"
).split()


@pytest.mark.parametrize("steps", [25, 50])
def test_the_first_windows_of_the_policy_are_its_own(tmp_path, monkeypatch, steps):
    taken, stored = [], []
    make = off_policy.n_step_transform

    def spied(*arguments):
        transform = make(*arguments)
        inverse = transform.inv

        def recorded(batch):
            taken.append(batch.clone())
            stored.append(inverse(batch).clone())
            return stored[-1]

        transform.inv = recorded
        return transform

    monkeypatch.setattr(off_policy, "n_step_transform", spied)
    run_dir = tmp_path / "run"
    flags = [*FLAGS, "--warmup-frames", str(4 * steps), "--run-dir", str(run_dir)]
    sac_lag.launch(sac_lag.main, sac_lag.Config, flags)
    random, first = taken[:2]
    assert random.shape == (4, steps)
    # The transform hands out the last three random steps with the policy's first batch.
    ends = stored[1][:, :3]
    gamma = sac_lag.Config().gamma
    reward = random["next", "reward"]
    torch.testing.assert_close(ends["next", "reward"][:, 2], reward[:, -1])
    torch.testing.assert_close(ends["next", "reward"][:, 1], reward[:, -2] + gamma * reward[:, -1])
    last = random["next", "observation"][:, -1:].expand(-1, 3, -1)
    assert torch.equal(ends["next", "observation"], last)
    assert not ends["next", "terminated"].any()  # still bootstrapped
    assert torch.equal(first["observation"][:, 0], stored[1]["observation"][:, 3])
    # What ended is what the episodes are counted by: those cut short are none.
    expected = 4 * (steps // 50) + 4  # of warm-up, and of the policy's first 50 steps
    assert read_metrics(run_dir / "metrics.csv")["episodes"][0] == expected
