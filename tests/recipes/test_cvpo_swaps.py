"""Every part of CVPO that one option replaces: a short training each, and the trace the part must leave."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from small_runs import small
from tensordict import TensorDict

import cvpo
from safe_components.lagrangian import GradientMultiplier, PIDMultiplier
from safe_components.training import Replay, Task
from safe_components.training.config import choices_of, fields

# The policy whose numbers the tests of trust regions know.
GAUSSIAN = ("--policy", "gaussian", "--policy.hidden-sizes", 16, 16)


@pytest.fixture
def swapped(training):
    """Train; the rows, which must be whole, and what was trained."""

    def run(*flags, name="run"):
        rows, learner = training(cvpo, "--critics.warmup-updates", 20, *flags, name=name)
        assert "eval_reward" not in rows  # --eval-interval 0
        learned = np.isfinite(rows["eta"])
        assert learned.sum() >= 1
        assert all(np.isfinite(rows[key][learned]).all() for key in ("episode_reward", "kl_mean", "entropy"))
        return rows, learner

    return run


def states(number=200):
    generator = torch.Generator().manual_seed(0)
    return TensorDict(observation=torch.randn(number, 4, generator=generator), batch_size=[number])


def spread(learner):
    with torch.no_grad():
        return learner.policy.get_dist_params(states()).get("scale_tril")


def test_hard_trust_region_moves_its_multipliers(swapped):
    rows, _ = swapped("--trust-region", "hard", "--trust-region.lr", 0.1)
    assert (np.diff(rows["alpha_mean"]) != 0).all()


def test_retraction_shortens_what_is_too_long(swapped):
    # Forty steps of 0.002 between two copies of the policy go far beyond this trust region, one does not.
    options = (*GAUSSIAN, "--policy.lr", 0.002, "--policy.lr-end", 1, "--reference", "copy")
    options += ("--collect.updates-per-frame", 0.05)
    free, _ = swapped("--trust-region", "none", *options, name="none")
    bounds = ("--trust-region.kl-mean", 1e-3)
    held, learner = swapped("--trust-region", "retract", *bounds, *options, name="retract")
    assert not list(learner.mstep.trust_region.parameters())
    assert "retracted" not in free
    assert free["kl_mean"].min() > 5e-3
    assert held["kl_mean"].max() < 2.5e-3
    assert ((held["retracted"] > 0.5) & (held["retracted"] < 1.0)).all()


def test_soft_trust_region_keeps_its_penalties(swapped):
    penalties = ("--trust-region.coef-mean", 2, "--trust-region.coef-cov", 30)
    rows, learner = swapped("--trust-region", "soft", *penalties)
    assert set(rows["alpha_mean"]) == {2.0}
    assert set(rows["alpha_cov"]) == {30.0}
    assert not list(learner.mstep.trust_region.parameters())


def test_without_trust_region_the_policy_goes_further(swapped):
    bounds = ("--trust-region.kl-mean", 1e-5, "--trust-region.kl-cov", 1e-5, "--trust-region.lr", 1)
    policy = (*GAUSSIAN, "--policy.lr-end", 1)
    tight, _ = swapped(*bounds, *policy, name="tight")
    free, _ = swapped("--trust-region", "none", *policy, name="free")
    assert set(free["alpha_mean"]) == {0.0}
    # The tight one's multipliers need the first updates to rise.
    assert (free["kl_mean"] > 2 * tight["kl_mean"])[2:].all()
    assert (free["kl_cov"] > 2 * tight["kl_cov"])[2:].all()


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_covariance(swapped, covariance):
    _, learner = swapped("--policy.covariance", covariance)
    assert bool((spread(learner)[:, 1, 0] != 0).all()) == (covariance == "full")


def test_min_std_is_the_policys_floor(swapped):
    smallest = {}
    for floor in (0.01, 0.45):
        options = (*GAUSSIAN, "--policy.min-std", floor, "--policy.lr", 0.03)
        options += ("--policy.lr-end", 1, "--collect.updates-per-frame", 0.05, "--multiplier", "none")
        options += ("--trust-region", "none")
        _, learner = swapped(*options, name=str(floor))
        smallest[floor] = spread(learner).diagonal(dim1=-2, dim2=-1).min()
    assert smallest[0.01] < 0.45  # half the action range is 1
    assert smallest[0.45] >= 0.45


def test_only_newton_solves_the_dual_exactly(swapped):
    residual = {
        name: swapped("--multiplier", "dual", "--estep.solver", name, name=name)[0]["estep_residual"].max()
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
def test_the_multiplier_follows_the_episodes_of_each_batch(swapped, costly, kind):
    rows, learner = swapped("--multiplier", kind, "--cost-limit", 8, "--env.id", "Costly-v0")
    # The first row also holds the warm-up's random episodes, which do not move the multiplier: what it was
    # told is found from where it stands after the last row, backwards.
    alone = GradientMultiplier(8.0, 0.01) if kind == "gradient" else PIDMultiplier(8.0, 0.02, 0.01, 0.02)
    first = float(rows["lambda"][0])
    told = first / (0.01 if kind == "gradient" else 0.03) + 8.0
    lam = [float(alone.update(cost)) for cost in (told, *rows["episode_cost"][1:])]
    assert max(lam) > 0
    # The updates that follow a batch use the multiplier at once.
    np.testing.assert_allclose(rows["lambda"], lam, rtol=1e-5)
    assert learner.control.multiplier.lam.item() == pytest.approx(lam[-1], rel=1e-5)


def test_no_constraint_has_no_price(swapped):
    rows, learner = swapped("--multiplier", "none", "--cost-limit", 0)
    assert set(rows["lambda"]) == {0.0}
    assert learner.control is None


def test_where_the_limit_is_out_of_reach(swapped, costly):
    task = ("--env.id", "Costly-v0", "--cost-limit", 0, "--multiplier", "dual")
    clip = ("--multiplier.infeasible", "clip", "--multiplier.max", 0.5)
    clipped, _ = swapped(*task, *clip, name="clip")
    recovered, _ = swapped(*task, "--multiplier.infeasible", "recover", name="recover")
    assert clipped["feasible"][0] < 1
    assert recovered["feasible"][0] < 1
    np.testing.assert_allclose(clipped["lambda_capped"], 1 - clipped["feasible"])
    assert clipped["lambda"].max() <= 0.5
    assert set(recovered["lambda_capped"]) == {0.0}


def test_limit_schedule(swapped):
    flags = ("--budget.start", 40, "--cost-limit", 10, "--budget.decay-frames", 1000)
    rows, learner = swapped("--multiplier", "dual", *flags)
    # Frames 600, 800, 1000, 1200: 60 %, 80 %, all, all of the way from 40 to 10; gamma .99, 50 steps.
    limits = np.array([22.0, 16.0, 10.0, 10.0])
    np.testing.assert_allclose(rows["q_cost_limit"], limits * (1 - 0.99**50) / (0.01 * 50), rtol=1e-6)
    assert learner.budget.cost_limit.item() == pytest.approx(10.0)
    _, learner = swapped("--multiplier", "pid", *flags, "--total-frames", 800, name="pid")
    assert learner.control.multiplier.cost_limits.item() == pytest.approx(16.0)


def test_feedback_tightens_the_limits(swapped, costly):
    task = ("--env.id", "Costly-v0", "--cost-limit", 1, "--multiplier", "dual")
    # An episode of this task costs more than nothing in the first frames: the multiplier rises at once.
    plain, _ = swapped(*task, name="plain")
    feedback = ("--budget.feedback", "gradient", "--budget.feedback.lr", 0.01)
    rows, learner = swapped(*task, *feedback, name="feedback")
    limit = (1 - 0.99**50) / (0.01 * 50)
    np.testing.assert_allclose(plain["q_cost_limit"], limit, rtol=1e-6)
    lam = learner.budget.feedback.lam.item()
    assert lam > 0
    assert learner.estep.cost_limits.item() == pytest.approx(limit / (1 + lam))
    assert rows["q_cost_limit"].max() <= limit * (1 + 1e-6)
    assert rows["q_cost_limit"].min() < 0.99 * limit


@pytest.mark.parametrize("reference", ["polyak", "copy"])
def test_reference_policy(swapped, reference):
    # An update in every second batch of frames: the last batch has none, and ends with the reference as
    # `copy` leaves it.
    pace = ("--collect.updates-per-frame", 0.0025, "--total-frames", 1000)
    _, learner = swapped("--reference", reference, *pace)
    new, old = learner.mstep.policy_params, learner.mstep.target_policy_params
    pairs = zip(new.values(True, True), old.values(True, True), strict=True)
    same = all(torch.equal(new.detach(), old.detach()) for new, old in pairs)
    assert same == (reference == "copy")


@pytest.mark.parametrize("critics", ["target", "online"])
def test_critics_that_score_the_particles(swapped, critics):
    _, learner = swapped("--estep.critics", critics, "--estep.entropy-coef", 0)
    batch = learner.particles(states())
    loss = learner.critics.loss
    params = loss.critic_params if critics == "online" else loss.target_critic_params
    with torch.no_grad(), params.to_module(loss.critic, preserve_module_state=False):
        reward, cost = loss.critic(batch["observation"], batch["particles", "action"])
    torch.testing.assert_close(batch["particles", "q_reward"], reward.amin(0).squeeze(-1))
    torch.testing.assert_close(batch["particles", "q_cost"], cost.mean(0))


def test_entropy_is_that_of_the_estep_and_of_the_targets(training):
    rows, learner = training(cvpo, "--estep.entropy-coef", 0.01, "--policy", "tanh")
    assert np.isfinite(rows["eta"]).any()
    assert 0.01 < learner.entropy_coef < 10.0  # in the task's unit now
    for part in (learner.particles, learner.critics.loss):
        assert part.entropy_coef() is learner.entropy_coef


@pytest.mark.parametrize("how", ["mean", "max", "conservative"])
def test_cost_critics_are_aggregated_in_target_and_estep(swapped, how):
    _, learner = swapped("--critics.cost-members", 3, "--critics.cost-aggregate", how)
    assert learner.particles.cost_aggregate == how
    assert [signal.aggregate for signal in learner.critics.loss.signals] == ["min", how]
    batch = states()
    _, cost = learner.critics.critic(batch["observation"], torch.zeros(len(batch), 2))
    assert cost.shape == (3, len(batch), 1)


def test_states_of_the_estep_are_the_last_frames():
    config = small(cvpo, "--replay.window", 400, "--critics.n-step", 1)
    replay, task = Replay.of(config, window=config.replay.window), Task(config)
    steps = task.warm_up(1200, seed=0)  # four environments
    for batch in steps.split(50, dim=1):
        replay.extend(batch)
    newest = {tuple(row) for row in steps["observation"][:, -100:].reshape(-1, 4).tolist()}
    seen = {tuple(row) for _ in range(200) for row in replay.sample()[1]["observation"].tolist()}
    assert seen == newest
    whole = Replay.of(config, window=config.replay.size)  # one buffer serves both
    whole.extend(steps)
    transitions, drawn = whole.sample()
    assert torch.equal(transitions["observation"], drawn["observation"])


@pytest.mark.parametrize("particles", [2, 32])
def test_number_of_particles(swapped, particles):
    _, learner = swapped("--estep.num-particles", particles)
    assert learner.particles(states())["particles", "action"].shape == (200, particles, 2)


def test_particles_in_mirrored_pairs(swapped):
    _, learner = swapped("--estep.antithetic", "--estep.num-particles", 6)
    drawn = learner.particles(states())["particles"]
    torch.testing.assert_close(drawn["latent"].mean(1), drawn["loc"], rtol=0, atol=1e-6)


def test_scoring_precision(swapped):
    _, learner = swapped("--execution.scoring-precision", "bfloat16")
    critic, observation = learner.critics.critic, states()["observation"]
    action = torch.zeros(len(observation), 1, 2)
    with torch.no_grad():
        low = critic(observation, action)[0].squeeze(2)
        high = critic(observation, action.squeeze(1))[0]  # one action a state is never scored in bfloat16
    assert 1e-6 < (low - high).abs().max() < 0.05 * high.std()


def test_every_choice_of_the_config_is_tried_above():
    names = (__file__, "test_execution.py", "test_own_parts.py")
    source = "".join(Path(__file__).with_name(Path(name).name).read_text() for name in names)
    config = cvpo.Config()
    chosen = {path for path, hint, _ in fields(config) if choices_of(hint)}
    literal = {path for path, hint, _ in fields(config) if "Literal" in str(hint)} - {"run.loggers"}
    for path in chosen | literal:
        assert f"--{path.replace('_', '-')}" in source, path


def test_the_likelihood_that_the_m_step_maximizes(swapped):
    for likelihood in ("decoupled", "joint"):
        _, learner = swapped("--mstep.likelihood", likelihood, name=likelihood)
        batch = learner.estep(learner.particles(states()))
        fit = learner.mstep(batch)
        expected = fit["log_likelihood_mean"] + fit["log_likelihood_cov"]
        if likelihood == "joint":
            normal = learner.policy.get_dist(states()).base_dist
            log_prob = normal.log_prob(batch["particles", "latent"].movedim(1, 0)).movedim(0, 1)
            expected = (batch["particles", "weight"] * log_prob).sum(-1).mean().detach()
        torch.testing.assert_close(fit["log_likelihood"], expected, rtol=1e-4, atol=1e-4)
