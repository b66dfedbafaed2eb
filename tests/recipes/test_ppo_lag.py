"""The PPO-Lag recipe: its advantages by hand, short runs, resumption, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import restored
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives.value import GAE

import ppo_lag
from safe_components.training import load_config, read_metrics, with_run

DOCS = Path(__file__).parents[2] / "docs"
GAMMA, DECAY = 0.9, 0.8


def gae(signal, value, next_value, done, terminated):
    """delta_t = r_t + gamma V(s_t+1) (unless terminated) - V(s_t), summed backwards within an episode."""
    advantage, after = np.zeros_like(signal), 0.0
    for t in reversed(range(len(signal))):
        delta = signal[t] + GAMMA * next_value[t] * (not terminated[t]) - value[t]
        after = delta + GAMMA * DECAY * after * (not done[t])
        advantage[t] = after
    return advantage


@pytest.mark.parametrize("m", [1, 2])
def test_advantages_against_a_loop(m):
    """One episode terminates, one is truncated, the last goes on."""
    torch.manual_seed(0)
    rows, length = 3, 12
    done = torch.zeros(rows, length, 1, dtype=torch.bool)
    terminated = done.clone()
    terminated[0, 4] = done[0, 4] = done[1, 7] = True
    steps = TensorDict(
        observation=torch.randn(rows, length, 2),
        next=TensorDict(
            observation=torch.randn(rows, length, 2),
            reward=torch.randn(rows, length, 1),
            cost=torch.rand(rows, length, m),
            done=done,
            terminated=terminated,
            batch_size=[rows, length],
        ),
        batch_size=[rows, length],
    )
    nets = {"state_value": torch.nn.Linear(2, 1), "cost_value": torch.nn.Linear(2, m)}
    reward_gae, cost_gae = (
        GAE(gamma=GAMMA, lmbda=DECAY, value_network=TensorDictModule(net, ["observation"], [name]))
        for name, net in nets.items()
    )
    cost_gae.set_keys(**{name: f"cost_{name}" for name in ppo_lag.COST_KEYS}, reward="cost")
    lam = torch.tensor([0.5, 2.0][:m], dtype=torch.float64)
    out = steps.clone()
    assert torch.equal(ppo_lag.add_advantage(out, reward_gae, cost_gae, lam), lam.float())

    with torch.no_grad():
        values = {name: net(steps["observation"]).numpy() for name, net in nets.items()}
        after = {name: net(steps["next", "observation"]).numpy() for name, net in nets.items()}
    signals = {"state_value": steps["next", "reward"].numpy(), "cost_value": steps["next", "cost"].numpy()}
    flags = done[..., 0].numpy(), terminated[..., 0].numpy()
    expected = {
        name: np.stack(
            [
                np.stack(
                    [
                        gae(signals[name][i, :, k], values[name][i, :, k], after[name][i, :, k],
                            flags[0][i], flags[1][i])
                        for k in range(values[name].shape[-1])
                    ],
                    -1,
                )
                for i in range(rows)
            ]
        )
        for name in nets
    }  # fmt: skip
    combined = expected["state_value"] - (expected["cost_value"] * lam.numpy()).sum(-1, keepdims=True)
    combined /= 1 + lam.numpy().sum()
    # float32, sums over at most 12 terms of order 1
    np.testing.assert_allclose(out["advantage"], combined, atol=5e-6)
    np.testing.assert_allclose(
        out["cost_value_target"], expected["cost_value"] + values["cost_value"], atol=5e-6
    )
    np.testing.assert_allclose(
        out["value_target"], expected["state_value"] + values["state_value"], atol=5e-6
    )


def test_standardized_advantages():
    advantage = torch.randn(100, 1) * 7 + 3
    scaled = ppo_lag.standardize(advantage)
    torch.testing.assert_close(scaled.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(correction=0), torch.tensor(1.0))
    assert torch.equal(ppo_lag.standardize(torch.full((5, 1), 2.0)), torch.zeros(5, 1))


def test_a_run_leaves_rows_of_defined_metrics(tmp_path, training):
    rows, _ = training(ppo_lag, "--eval-interval", 400, "--loggers", "tensorboard")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint", "config.yaml", "curves.png", "episodes.csv", "metrics.csv", "tensorboard",
    }  # fmt: skip
    assert rows["frames"].tolist() == [600, 800, 1000, 1200]  # the first after 400 random steps
    assert rows["updates"].tolist() == [8, 16, 24, 32]  # 2 epochs of 4 batches
    assert rows["episodes"].tolist() == [12, 4, 4, 4]
    assert np.isfinite(rows["eval_cost"]).tolist() == [True, True, False, True]
    assert (rows["kl"] > 0).all()
    page = (DOCS / "metrics.md").read_text()
    assert {name for name in rows if f"`{name}`" not in page} == set()


def test_focops_logs_the_share_of_states_that_move_the_policy(training):
    flags = ("--algorithm", "focops", "--algorithm.max-kl", 1e-3, "--update.epochs", 5)
    rows, learner = training(ppo_lag, "--total-frames", 800, *flags)
    assert rows["kept_fraction"].min() < 1  # the bound is reached
    assert "clip_fraction" not in rows
    # The old policy is the one that collected the last batch.
    old = learner.loss.target_policy_params.values(True, True)
    assert not all(map(torch.equal, old, learner.loss.policy_params.values(True, True)))
    page = (DOCS / "metrics.md").read_text()
    assert {name for name in rows if f"`{name}`" not in page} == set()


def test_crpo_lowers_the_cost_alone_while_it_is_over_the_limit():
    steps = TensorDict(next=TensorDict(cost=torch.rand(2, 4, 2), batch_size=[2, 4]), batch_size=[2, 4])
    for name in ("done", "terminated"):
        steps["next", name] = torch.zeros(2, 4, 1, dtype=torch.bool)
    reward, cost = torch.randn(2, 4, 1), torch.randn(2, 4, 2)

    def climbed(lam):
        estimate = lambda name, value: lambda data: data.set(name, value.clone())  # noqa: E731
        gae = estimate("advantage", reward), estimate("cost_advantage", cost)
        ppo_lag.add_advantage(steps, *gae, torch.tensor(lam), switch=True)
        return steps["advantage"]

    assert torch.equal(climbed([0.0, 0.0]), reward)
    assert torch.equal(climbed([0.0, 1.0]), -cost[..., 1:])


def test_saute_trains_without_a_price_and_is_measured_by_the_environments_reward(training):
    flags = ("--multiplier", "none", "--env.saute", -1e6, "--cost-limit", 0.5, "--eval-interval", 400)
    rows, learner = training(ppo_lag, "--total-frames", 800, "--env.id", "cost_envs:Corridor-v0", *flags)
    assert learner.control is None
    assert (rows["lambda"] == 0).all()
    assert rows["loss_value_reward"].max() > 1e6  # the value network has seen the reward without budget
    assert np.nanmax(np.abs(rows["episode_reward"])) < 1e4
    assert abs(rows["eval_reward"][-1]) < 1e4


def test_each_episode_is_held_to_its_own_limit(training):
    """Prices differ between limits: low limits are exceeded, high limits are not."""
    flags = ("--env.limits", 0.01, 4, "--env.id", "cost_envs:Corridor-v0", "--total-frames", 800)
    rows, learner = training(ppo_lag, *flags)
    prices = learner.control.prices
    over = (prices.cost / prices.limit).flatten()
    assert over[0] > over[-1]
    assert prices(torch.tensor([[0.01]])) > 1.1 * prices(torch.tensor([[4.0]]))
    assert rows["price"][-1] == pytest.approx(prices.prices.lam.mean().item(), rel=1e-6)
    page = (DOCS / "metrics.md").read_text()
    assert {name for name in rows if f"`{name}`" not in page} == set()


def test_the_same_seed_gives_the_same_numbers(training):
    a, b = (training(ppo_lag, "--total-frames", 800, name=name)[0] for name in ("a", "b"))
    for name in {name for name in a if "second" not in name}:  # all but times
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_epochs_stop_at_the_divergence_given(training):
    rows, _ = training(ppo_lag, "--total-frames", 800, "--update.kl-stop", 0, "--update.epochs", 5)
    assert rows["updates"].tolist() == [4, 8]  # one epoch each


def test_the_multiplier_follows_the_episodes_just_collected(training):
    """lambda <- [lambda + lr (J_c - d)]_+, a row and four whole episodes for each batch of 200 frames."""
    gradient = ("--multiplier", "gradient", "--multiplier.lr", 0.01, "--multiplier.init", 0.1)
    rows, _ = training(ppo_lag, "--total-frames", 1600, "--cost-limit", 5, *gradient)
    moves = 0.01 * (rows["episode_cost"] - 5.0)
    expected = np.maximum(rows["lambda"][:-1] + moves[1:], 0.0)
    np.testing.assert_allclose(rows["lambda"][1:], expected, atol=1e-6)  # the file holds 8 digits
    assert len(set(rows["lambda"])) > 1


def test_a_batch_in_which_no_episode_ends_leaves_the_multiplier(training):
    batches = ("--collect.frames-per-batch", 100, "--log-interval", 100)
    flags = ("--total-frames", 900, "--cost-limit", 0, "--multiplier", "pid", "--multiplier.init", 0.5)
    rows, _ = training(ppo_lag, *flags, *batches)
    quiet = rows["episodes"][1:] == 0
    assert quiet.any()
    np.testing.assert_array_equal(np.diff(rows["lambda"])[quiet], 0.0)


def test_resuming_restores_everything(tmp_path, training):
    directory = tmp_path / "run"
    _, learner = training(ppo_lag, "--total-frames", 800)
    config = load_config(ppo_lag.Config, directory)
    saved, found = learner.state_dict(), restored(ppo_lag, directory, learner).state_dict()
    moments = saved.pop("_extra_state"), found.pop("_extra_state")
    assert all(torch.equal(value, found[name]) for name, value in saved.items())
    assert set(moments[0]) == {"policy_optim", "value_optim"}
    for name, optimizer in moments[0].items():
        for index, state in optimizer["state"].items():
            assert torch.equal(state["exp_avg"], moments[1][name]["state"][index]["exp_avg"])
    later = ppo_lag.main(with_run(config, total_frames=1200)).state_dict()
    assert not all(torch.equal(value, later[name]) for name, value in saved.items())
    assert read_metrics(directory / "metrics.csv")["frames"].tolist() == [600, 800, 1000, 1200]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "focops"])
def test_it_learns_reward_and_a_large_multiplier_learns_safety(algorithm, training):
    """Random actions earn about 0 here; the return without a limit was 40 at a cost of 68 when tried."""
    flags = (
        "--total-frames 12400 --env.num-envs 10 --env.max-episode-steps 200 --collect.frames-per-batch 4000 "
        "--update.epochs 10 --eval-interval 12000 --log-interval 4000 --eval-episodes 10 --cost-limit 1000 "
        "--update.batch-size 250 --policy.hidden-sizes 32 32 --values.hidden-sizes 32 32 --policy.lr 1e-3 "
        f"--multiplier gradient --multiplier.lr 1e-9 --multiplier.max 100 --algorithm {algorithm}"
    ).split()
    evaluated = {}
    for name, init in (("free", 0), ("safe", 50)):
        rows, _ = training(ppo_lag, *flags, "--multiplier.init", init, name=name)
        evaluated[name] = rows["eval_reward"][-1], rows["eval_cost"][-1]
    assert evaluated["free"][0] > 20
    assert evaluated["safe"][1] < 5 < 20 < evaluated["free"][1]


def test_two_costs_two_limits(training):
    costs = ("--cost-limit", 5, 0, "--env.cost-keys", "walls", "speed", "--eval-interval", 400)
    gradient = ("--multiplier", "gradient", "--multiplier.init", 0.5)
    rows, _ = training(ppo_lag, "--total-frames", 800, *costs, *gradient)
    # Under the one limit, not under the other.
    assert rows["lambda_walls"][-1] < 0.5 <= rows["lambda_speed"][-1]
    assert np.isfinite(rows["eval_cost_speed"][-1])


def test_safety_gymnasium_trains(training):
    rows, _ = training(ppo_lag, "--total-frames", 800, "--env.id", "SafetyPointCircle1-v0")
    assert np.isfinite(rows["loss_value_cost"][-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_on_cuda(training):
    training(ppo_lag, "--total-frames", 800, "--device", "cuda")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cost-limit", "25", "10"], "2 limits"),
        (["--advantage.gamma", "1.5"], r"advantage.gamma is 1.5, must be in \(0, 1\]"),
        (["--advantage.gae-lambda", "-1"], "gae_lambda"),
        (["--update.epochs", "0"], "epochs"),
        (["--update.batch-size", "0"], "batch_size"),
        (["--collect.frames-per-batch", "0"], "frames_per_batch"),
        (["--algorithm.clip", "-0.1"], "clip"),
        (["--algorithm.clip", "1.5"], "clip"),
        (["--multiplier.rate", "-1"], "-1"),
        (["--env.limits", "75", "5"], "must be two limits, the smaller first"),
        (["--env.limits", "5", "75", "--env.saute", "0"], "choose one of them"),
        (["--env.limits", "5", "75", "--multiplier", "gradient"], "use --multiplier price"),
        (["--env.saute", "0", "--cost-limit", "0"], "needs a positive cost_limit"),
        (["--policy.lr", "-1"], "-1"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, flags, said):
    arguments = ["--env.id", "PointCircle", "--run-dir", str(tmp_path / "run"), *flags]
    with pytest.raises(SystemExit, match=said) as stop:
        ppo_lag.launch(ppo_lag.main, ppo_lag.Config, arguments)
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "run").exists()
