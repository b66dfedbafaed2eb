"""Every part of CVPO that one setting replaces: a short training each, and the trace the part must leave."""

import dataclasses
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import cvpo
from safe_components.lagrangian import GradientMultiplier, PIDMultiplier
from safe_components.training import read_metrics

# One row of metrics and one call of `collected` per batch of 200 frames: four whole episodes of 50 steps.
SMALL = (
    "--env.id PointCircle --env.num-envs 4 --env.frame-skip 1 --env.max-episode-steps 50 --seed 0 "
    "--hidden-sizes 16 16 --num-particles 8 --batch-size 32 --buffer-size 2000 --updates-per-frame 0.02 "
    "--warmup-frames 400 --critic-warmup 20 --frames-per-batch 200 --log-interval 200 --eval-interval 0 "
    "--checkpoint-interval 1000000 --threads 1 --no-progress --loggers --total-frames 1200"
).split()


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run the recipe; returns its rows and the parts that a checkpoint would hold."""

    def run(*flags, name="run"):
        parts = {}

        class Spy(cvpo.Run):
            def __init__(self, config, recipe, **components):
                parts.update(components)
                super().__init__(config, recipe, **components)

        with monkeypatch.context() as patch:
            patch.setattr(cvpo, "Run", Spy)
            directory = tmp_path / name
            cvpo.launch(cvpo.main, cvpo.Config, [*SMALL, "--run-dir", str(directory), *flags])
        rows = read_metrics(directory / "metrics.csv")
        assert "eval_reward" not in rows  # --eval-interval 0
        learned = np.isfinite(rows["eta"])
        assert learned.sum() >= 1
        assert all(np.isfinite(rows[key][learned]).all() for key in ("episode_reward", "kl_mean", "entropy"))
        return rows, parts

    return run


def test_hard_trust_region_moves_its_multipliers(train):
    rows, _ = train("--trust-region", "hard", "--alpha-lr", "0.1")
    assert (np.diff(rows["alpha_mean"]) != 0).all()


def test_retraction_shortens_what_is_too_long(train):
    # Forty steps of 0.002 between two copies of the policy go far beyond this trust region, one does not.
    options = "--policy-lr 0.002 --kl-mean 1e-3 --reference copy --updates-per-frame 0.05".split()
    free, _ = train("--trust-region", "none", *options, name="none")
    held, parts = train("--trust-region", "retract", *options, name="retract")
    assert not list(parts["mstep"].trust_region.parameters())
    assert "retracted" not in free
    assert free["kl_mean"].min() > 0.01
    assert held["kl_mean"].max() < 2.5e-3
    assert ((held["retracted"] > 0.5) & (held["retracted"] < 1.0)).all()


def test_soft_trust_region_keeps_its_penalties(train):
    rows, parts = train("--trust-region", "soft", "--soft-mean", "2", "--soft-cov", "30")
    assert set(rows["alpha_mean"]) == {2.0}
    assert set(rows["alpha_cov"]) == {30.0}
    assert not list(parts["mstep"].trust_region.parameters())


def test_without_trust_region_the_policy_goes_further(train):
    tight, _ = train("--kl-mean", "1e-5", "--kl-cov", "1e-5", "--alpha-lr", "1", name="tight")
    free, _ = train("--trust-region", "none", name="free")
    assert set(free["alpha_mean"]) == {0.0}
    # The tight one's multipliers need the first updates to rise.
    assert (free["kl_mean"] > 2 * tight["kl_mean"])[1:].all()
    assert (free["kl_cov"] > 2 * tight["kl_cov"])[1:].all()


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_covariance(train, covariance):
    _, parts = train("--covariance", covariance)
    with torch.no_grad():
        lower = parts["policy"].get_dist_params(parts["buffer"][:]).get("scale_tril")
    assert bool((lower[:, 1, 0] != 0).all()) == (covariance == "full")


def test_min_std_is_the_policys_floor(train):
    smallest = {}
    for floor in ("0.01", "0.45"):
        _, parts = train("--min-std", floor, "--trust-region", "none", "--policy-lr", "0.01", name=floor)
        with torch.no_grad():
            lower = parts["policy"].get_dist_params(parts["buffer"][:]).get("scale_tril")
        smallest[floor] = lower.diagonal(dim1=-2, dim2=-1).min()
    assert smallest["0.01"] < 0.45  # half the action range is 1
    assert smallest["0.45"] >= 0.45


def test_only_newton_solves_the_dual_exactly(train):
    residual = {
        name: train("--estep-solver", name, name=name)[0]["estep_residual"].max()
        for name in ("newton", "slsqp", "adam")
    }
    assert residual["newton"] < 1e-6
    assert residual["slsqp"] > 1e-6
    assert residual["adam"] > 1e-6


class Costly(gymnasium.Env):
    """Costs the square of the action."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return seen, float(action[0]), False, False, {"cost": float(action[0]) ** 2}


@pytest.fixture
def costly():
    gymnasium.register("Costly-v0", entry_point=Costly, max_episode_steps=50)
    yield
    del gymnasium.registry["Costly-v0"]


@pytest.mark.parametrize("kind", ["gradient", "pid"])
def test_multiplier_is_moved_by_the_episodes_of_each_batch(train, costly, monkeypatch, kind):
    told = []

    def spied(config):
        multiplier = make_multiplier(config)
        update = multiplier.update
        multiplier.update = lambda cost: told.append((cost.item(), update(cost).item()))
        return multiplier

    make_multiplier = cvpo.make_multiplier
    monkeypatch.setattr(cvpo, "make_multiplier", spied)
    rows, _ = train("--multiplier", kind, "--cost-limit", "8", "--env.id", "Costly-v0")
    costs, lam = zip(*told, strict=True)
    # The first row also holds the warm-up's random episodes, which do not move the multiplier.
    np.testing.assert_allclose(rows["episode_cost"][1:], costs[1:], rtol=1e-6)
    assert len(costs) == len(rows["frames"])
    # It is used at once by the updates that follow.
    np.testing.assert_allclose(rows["lambda"], lam, rtol=1e-6)
    assert max(lam) > 0
    alone = GradientMultiplier(8.0, 0.01) if kind == "gradient" else PIDMultiplier(8.0, 0.02, 0.01, 0.02)
    np.testing.assert_allclose(lam, [float(alone.update(cost)) for cost in costs], rtol=1e-6)


def test_no_constraint_has_no_price(train):
    rows, _ = train("--multiplier", "none", "--cost-limit", "0")
    assert set(rows["lambda"]) == {0.0}


def test_where_the_limit_is_out_of_reach(train):
    clipped, _ = train("--infeasible", "clip", "--lambda-max", "0.5", "--cost-limit", "0", name="clip")
    recovered, _ = train("--infeasible", "recover", "--cost-limit", "0", name="recover")
    assert clipped["feasible"][0] < 1
    assert recovered["feasible"][0] < 1
    np.testing.assert_allclose(clipped["lambda_capped"], 1 - clipped["feasible"])
    assert clipped["lambda"].max() <= 0.5
    assert set(recovered["lambda_capped"]) == {0.0}


def test_limit_schedule(train):
    rows, parts = train("--limit-start", "40", "--cost-limit", "10", "--limit-decay-frames", "1000")
    # Frames 600, 800, 1000, 1200: 60 %, 80 %, all, all of the way from 40 to 10; gamma .99, 50 steps.
    limits = np.array([22.0, 16.0, 10.0, 10.0])
    np.testing.assert_allclose(rows["q_cost_limit"], limits * (1 - 0.99**50) / (0.01 * 50), rtol=1e-6)
    assert parts["multiplier"].cost_limits.item() == pytest.approx(10.0)


def test_feedback_tightens_the_limits(train):
    # An episode of this task costs more than nothing in the first frames: the multiplier rises at once.
    options = ("--cost-limit", "1", "--multiplier-lr", "0.01", "--pid-kp", "0", "--pid-kd", "0")
    plain, _ = train(*options, name="plain")
    rows, tightened = train("--multiplier", "feedback", *options, name="feedback")
    limit = (1 - 0.99**50) / (0.01 * 50)
    np.testing.assert_allclose(plain["q_cost_limit"], limit, rtol=1e-6)
    multiplier = tightened["multiplier"].lam.item()
    assert multiplier > 0
    assert tightened["estep"].cost_limits.item() == pytest.approx(limit / (1 + multiplier))
    assert rows["q_cost_limit"].max() <= limit * (1 + 1e-6)
    assert rows["q_cost_limit"].min() < 0.99 * limit


@pytest.mark.parametrize("reference", ["polyak", "copy"])
def test_reference_policy(train, reference):
    # An update in every second batch of frames: the last batch has none, and ends with the reference as
    # `copy` leaves it.
    _, parts = train("--reference", reference, "--updates-per-frame", "0.0025", "--total-frames", "1000")
    mstep = parts["mstep"]
    pairs = zip(
        mstep.policy_params.values(True, True), mstep.target_policy_params.values(True, True), strict=True
    )
    same = all(torch.equal(new.detach(), old.detach()) for new, old in pairs)
    assert same == (reference == "copy")


@pytest.mark.parametrize("critics", ["target", "online"])
def test_estep_critics(train, monkeypatch, critics):
    seen = {}
    sampler = cvpo.ParticleSampler

    def spy(policy, critic, *args, **kwargs):
        module = sampler(policy, critic, *args, **kwargs)
        seen.update(module=module, critic=critic)
        return module

    monkeypatch.setattr(cvpo, "ParticleSampler", spy)
    _, parts = train("--estep-critics", critics)
    batch = seen["module"](parts["buffer"].sample())
    loss, critic = parts["critic_td"], seen["critic"]
    params = loss.critic_params if critics == "online" else loss.target_critic_params
    with torch.no_grad(), params.to_module(critic, preserve_module_state=False):
        reward, cost = critic.split(critic(batch["observation"], batch["particles", "action"]))
    torch.testing.assert_close(batch["particles", "q_reward"], reward.amin(0).squeeze(-1))
    torch.testing.assert_close(batch["particles", "q_cost"], cost.mean(0))


@pytest.mark.parametrize("how", ["mean", "max", "conservative"])
def test_cost_critics_are_aggregated_in_target_and_estep(train, monkeypatch, how):
    kwargs = {}
    sampler = cvpo.ParticleSampler
    monkeypatch.setattr(cvpo, "ParticleSampler", lambda *a, **k: kwargs.update(k) or sampler(*a, **k))
    _, parts = train("--cost-critics", "3", "--cost-aggregate", how)
    assert kwargs["cost_aggregate"] == how
    loss, batch = parts["critic_td"], parts["buffer"].sample()
    assert (loss.reward_aggregate, loss.aggregate) == ("min", how)
    with torch.no_grad(), loss.critic_params.to_module(loss.critic, preserve_module_state=False):
        _, cost = loss.critic.split(loss.critic(batch["observation"], batch["action"]))
        assert cost.shape == (3, 32, 1)


def test_window_of_the_estep(train):
    _, whole = train(name="whole")
    assert "recent" not in whole
    _, parts = train("--estep-window", "400", "--n-step", "1", name="window")
    stored = {tuple(row) for row in parts["buffer"][:]["observation"][-400:].tolist()}
    recent = {tuple(row) for row in parts["recent"][:]["observation"].tolist()}
    # Two batches of frames. In the buffer the newest step of each of the four environments still waits for
    # its successor, so that one older step of each is among the last 400.
    assert (len(recent), len(recent - stored), len(stored - recent)) == (400, 4, 4)


@pytest.mark.parametrize("particles", [2, 32])
def test_number_of_particles(train, particles):
    train("--num-particles", str(particles))


def test_particles_in_mirrored_pairs(train, monkeypatch):
    seen = []
    sampler = cvpo.ParticleSampler
    monkeypatch.setattr(cvpo, "ParticleSampler", lambda *a, **k: seen.append(sampler(*a, **k)) or seen[-1])
    _, parts = train("--antithetic", "--num-particles", "6")
    drawn = seen[0](parts["buffer"].sample())["particles"]
    torch.testing.assert_close(drawn["action"].mean(1), drawn["loc"], rtol=0, atol=1e-6)


def test_scoring_precision(train):
    _, exact = train("--scoring-precision", "float32", name="float32")
    _, parts = train("--scoring-precision", "bfloat16", name="bfloat16")
    critic, batch = parts["critic_td"].critic, exact["buffer"].sample()
    observation, action = batch["observation"], batch["action"].unsqueeze(1)
    with torch.no_grad():
        low = critic(observation, action).squeeze(2)
        high = critic(observation, action.squeeze(1))  # one action a state is never scored in bfloat16
    assert 1e-6 < (low - high).abs().max() < 0.05 * high.std()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--limit-start", "30", "20"], "limit_start"),
        (["--limit-start", "30", "--limit-decay-frames", "0"], "limit_decay_frames"),
        (["--trust-region", "soft", "--soft-mean", "-1"], "coef_mean"),
        (["--multiplier", "gradient", "--multiplier-lr", "0"], "lr=0"),
        (["--estep-window", "0"], "buffer"),
        (["--trust-region", "retract", "--kl-cov", "0"], "kl_cov"),
    ],
)
def test_bad_settings_are_one_line_before_any_work(tmp_path, flags, said):
    with pytest.raises(SystemExit, match=said) as stop:
        cvpo.launch(cvpo.main, cvpo.Config, [*SMALL, "--run-dir", str(tmp_path / "run"), *flags])
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_every_choice_of_the_config_is_tried_above():
    source = Path(__file__).read_text() + Path(__file__).with_name("test_execution.py").read_text()
    for field in dataclasses.fields(cvpo.Config):
        kind = str(field.type)
        if kind.startswith("Literal"):
            assert f"--{field.name.replace('_', '-')}" in source, field.name
