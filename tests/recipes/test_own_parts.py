"""Parts that an option chooses by import path, and policies that are no Gaussian: trained, saved, refused."""

import math

import numpy as np
import own_parts
import pytest
import torch
from small_runs import restored, small
from tensordict import TensorDict

import cvpo
import evaluate
from safe_components.critics import CriticPair
from safe_components.estep import Promise
from safe_components.mstep import WeightedLikelihoodLoss
from safe_components.policies import registry
from safe_components.training import (
    Replay,
    Task,
    config_to_dict,
    deploy,
    execute,
    load_policy,
    options,
    overlay,
    parse_config,
    with_value,
)

# The policy is moved by the last updates, so that what is loaded differs from what was made.
PACE = ("--critics.warmup-updates", 20, "--policy.lr", 0.01)


def learned(rows):
    """The rows with updates, whose metrics must be those of a policy that is no Gaussian."""
    after = np.isfinite(rows["eta"])
    assert after.sum() >= 1
    rows = {name: values[after] for name, values in rows.items()}
    for name in ("kl", "alpha", "entropy", "promised_reward", "delivered_reward"):
        assert np.isfinite(rows[name]).all(), name
    return rows


def test_a_policy_of_ones_own_keeps_the_trust_region_by_retraction():
    bound = ("--trust-region", "retract", "--trust-region.kl-mean", 1e-4)
    policy = ("--policy", "own_parts:mixture_policy", "--policy.lr", 0.01)
    config = small(cvpo, *policy, *bound, "--estep.num-particles", 64)
    learner = cvpo.CVPO(config, Task(config))
    assert isinstance(learner.mstep, WeightedLikelihoodLoss)
    states = TensorDict(observation=torch.randn(64, 4), batch_size=[64])
    metrics = learner.improve(states)
    assert metrics["retracted"] < 0.9
    # The last step was shortened by the divergence before it: one more step is what is left.
    assert learner.mstep(states)["kl"] < 0.01
    # Two Gaussians that are nearly one, each with this standard deviation of two actions.
    deviation = 0.1 + math.log(2.0)
    expected = 1.0 + math.log(2.0 * math.pi) + 2.0 * math.log(deviation)
    assert metrics["entropy"] == pytest.approx(expected, abs=0.2)


def test_a_policy_of_ones_own_is_not_compiled_because_its_divergence_reads_the_device():
    config = small(cvpo, "--policy", "own_parts:mixture_policy", "--execution.mode", "compile")
    learner = cvpo.CVPO(config, Task(config))
    with pytest.raises(ValueError, match=r"WeightedLikelihoodLoss computes on the host: .* --policy tanh"):
        execute(config.execution, learner, torch.device("cpu"))


def test_a_policy_of_ones_own_trains_and_can_be_continued_and_loaded(training, tmp_path, monkeypatch, capsys):
    rows, learner = training(cvpo, "--policy", "own_parts:mixture_policy", "--total-frames", 800, *PACE)
    assert (learned(rows)["kl"] > 0).all()

    run = tmp_path / "run"
    fresh = restored(cvpo, run, learner)
    for name, value in learner.policy.state_dict().items():
        torch.testing.assert_close(fresh.policy.state_dict()[name], value, rtol=0, atol=0)
    resumed = parse_config(cvpo.Config, ["--resume", str(run), "--total-frames", "1000"])
    assert resumed.policy.function == "own_parts:mixture_policy"

    builder = registry._BUILDERS.pop("mixture_policy")  # as in a process that has not imported it
    with pytest.raises(ValueError, match=r"no policy builder 'mixture_policy' .* import own_parts, where"):
        load_policy(run)

    def imported(path, option):
        assert path == "own_parts:mixture_policy"
        registry._BUILDERS["mixture_policy"] = builder

    monkeypatch.setattr(deploy, "import_part", imported)
    evaluate.run([str(run), "--episodes", "1", "--actions", "sampled"])
    assert "cvpo on PointCircle, sampled actions" in capsys.readouterr().out
    action = load_policy(run)(torch.randn(100, 4))
    assert action.shape == (100, 2)
    assert (action.abs() <= 1).all()


def test_a_squashed_policy_that_did_not_move_delivers_nothing_with_the_same_noise():
    config = small(cvpo, "--policy", "tanh")
    learner = cvpo.CVPO(config, Task(config))
    states = TensorDict(observation=torch.randn(64, 4), batch_size=[64])
    promised = Promise(learner.particles, learner.estep)
    assert promised.make(states["observation"])["promised_reward"] > 0.05
    before = torch.get_rng_state()
    assert promised.keep(learner.policy)["delivered_reward"].abs() < 1e-6
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        list(learner.policy.parameters())[-1].add_(0.5)
    assert promised.keep(learner.policy)["delivered_reward"].abs() > 1e-3


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("tnah", r"policy is 'tnah', must be one of gaussian, tanh, MODULE:NAME; did you mean tanh\?"),
        ("own", "policy is '', must be package.module:name"),
        ("no_such_parts:f", "policy is 'no_such_parts:f', but there is no module 'no_such_parts'"),
        ("own_parts:mixtrue", "module 'own_parts' has no attribute 'mixtrue'"),
        (
            "own_parts:Head.forward",
            "must be a function of observation_dim, action_low, action_high and hidden",
        ),
        ("own_parts:without_sizes", "got an unexpected keyword argument 'hidden_sizes'"),
    ],
)
def test_a_policy_that_cannot_be_imported_is_refused_at_the_command_line(policy, said):
    with pytest.raises(SystemExit, match=said):
        parse_config(cvpo.Config, ["--env.id", "PointCircle", "--policy", policy])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "without_distribution",
            r"returns a TensorDictModule without a distribution of actions \(get_dist\)",
        ),
        ("of_another_entry", r"reads \['pixels'\] and writes .*: it must read 'observation' alone"),
        ("of_other_actions", r"must be finite and of shape \[2, 2\], got shape \[2, 1\]"),
        ("of_no_numbers", r"must be finite and of shape \[2, 2\], got shape \[2, 2\]: \[\[nan"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_before_training(function, said):
    config = small(cvpo, "--policy", f"own_parts:{function}")
    with pytest.raises(ValueError, match=f"policy is 'own_parts:{function}', .*{said}"):
        cvpo.make_policy(config, Task(config))


def test_options_of_another_policy_are_refused_by_name():
    with pytest.raises(SystemExit, match=r"--policy\.init-std needs --policy tanh, which is not chosen"):
        parse_config(cvpo.Config, ["--policy", "gaussian", "--policy.init-std", "0.5"])
    config = small(cvpo, "--policy", "own_parts:mixture_policy", "--policy.hidden-sizes", 8)
    assert config.policy == options.OwnConfig((8,), function="own_parts:mixture_policy")
    assert config_to_dict(config)["policy"]["own"]["function"] == "own_parts:mixture_policy"
    assert overlay(cvpo.Config(), config_to_dict(config), "again").policy == config.policy
    assert with_value(cvpo.Config(), "policy", "own_parts:Head", "here").policy.function == "own_parts:Head"


@pytest.mark.parametrize(
    ("solver", "flags"),
    [
        ("Counting", ()),
        ("Counting", ("--multiplier", "dual")),
        ("plain_solver", ("--multiplier", "dual", "--multiplier.infeasible", "recover")),
    ],
)
def test_a_solver_of_ones_own_solves_every_e_step(solver, flags):
    config = small(cvpo, "--estep.solver", f"own_parts:{solver}", *flags)
    learner = cvpo.CVPO(config, Task(config))
    before = own_parts.Counting.calls
    metrics = learner.improve(TensorDict(observation=torch.randn(64, 4), batch_size=[64]))
    assert metrics["estep_kl"] <= 0.1 + 1e-6
    assert (own_parts.Counting.calls > before) == (solver == "Counting")


def test_critics_of_ones_own_are_learned_and_score_the_particles():
    config = small(cvpo, "--critics.network", "own_parts:two_critics")
    task = Task(config)
    learner, replay = cvpo.CVPO(config, task), Replay.of(config)
    assert type(learner.critics.critic) is CriticPair
    learner.critics.set_units(reward=torch.ones(1), cost=torch.ones(1))  # a critic without units keeps them
    replay.extend(task.warm_up(400, seed=0, least_steps=4))
    before = [parameter.clone() for parameter in learner.critics.loss.critic_params.parameters()]
    metrics = learner.update(*replay.sample())
    assert all(value.isfinite().all() for value in metrics.values())
    after = learner.critics.loss.critic_params.parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--estep.solver", "newtn"),
            r"estep\.solver is newtn, must be one of newton, slsqp, adam, or package",
        ),
        (("--estep.solver", "own_parts:newtn"), "module 'own_parts' has no attribute 'newtn'"),
        (
            ("--critics.network", "mpl"),
            r"critics\.network is mpl, must be one of mlp, or package\.module:name",
        ),
        (
            ("--critics.network", "no_such:f"),
            "critics.network is 'no_such:f', but there is no module 'no_such'",
        ),
    ],
)
def test_parts_that_cannot_be_imported_are_refused_at_the_command_line(flags, said):
    with pytest.raises(SystemExit, match=said):
        parse_config(cvpo.Config, ["--env.id", "PointCircle", *flags])


def test_parts_that_do_not_fit_are_refused_before_training():
    config = small(cvpo, "--estep.solver", "own_parts:plain_solver")  # the price gives the multiplier
    with pytest.raises(ValueError, match=r"must be a DualSolver, .* got a function: derive"):
        cvpo.CVPO(config, Task(config))
    config = small(
        cvpo, "--critics.network", "own_parts:critics_without_costs", "--critics.reward-members", 1
    )
    config = overlay(config, {"env": {"cost_keys": ["walls", "speed"]}, "budget.cost_limit": [25, 5]}, "test")
    with pytest.raises(
        ValueError, match=r"and costs \[E, 2, 2\] for .*, got shapes \[\[1, 2, 1\], \[1, 2, 1\]\]"
    ):
        cvpo.CVPO(config, Task(config))
