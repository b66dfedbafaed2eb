"""The scaled problem against NumPy: means, spreads, limits and bounds by their definitions."""

import numpy as np
import pytest
import torch

from safe_components.estep.problem import ScaledProblem, dual_problem, scale_problem

LIMITS = np.array([2.5, -1.0])


def estimates(prior):
    """Five states with four actions and two costs; with a prior, an action is excluded in each state."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 5, 4)) * np.array([3.0, 0.5, 20.0])[:, None, None] + 2.0
    if not prior:
        return values, np.full((5, 4), 0.25), None
    logits = rng.standard_normal((5, 4))
    logits[np.arange(5), np.arange(5) % 4] = -np.inf
    weight = np.exp(logits)
    return values, weight / weight.sum(1, keepdims=True), torch.tensor(logits)


def scaled(values, log_prior, **options) -> ScaledProblem:
    reward, *costs = torch.tensor(values)
    problem = dual_problem(reward, torch.stack(costs, -1), 0.1, torch.tensor(LIMITS), log_prior)
    return scale_problem(problem, **options)


@pytest.mark.parametrize("prior", [False, True])
def test_every_entry_by_its_definition(prior):
    values, weight, log_prior = estimates(prior)
    mean = (weight * values).sum(-1)
    centered = np.where(weight > 0, values - mean[..., None], 0.0)
    spread = np.sqrt((weight * centered**2).sum(-1).mean(-1))
    features = centered / spread[:, None, None]
    expected = {
        "center": mean.mean(-1),
        "spread": spread,
        "constant": np.zeros(3, dtype=bool),
        "limits": LIMITS,
        "lower": np.array([0.01, 0.0, 0.0]),
        "upper": np.array([np.inf, *(3.0 * spread[1:] / spread[0])]),
        # No distribution has a reward below that of the worst actions.
        "unreachable_below": features[0].min(-1).mean() - 1.0,
    }
    found = scaled(values, log_prior, eta_min=0.01, lam_max=3.0, stop_if_unreachable=True)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name).numpy(), value, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(found.dual.features.numpy(), features, rtol=1e-9, atol=1e-12)
    scaled_limits = (LIMITS - mean.mean(-1)[1:]) / spread[1:]
    np.testing.assert_allclose(found.dual.cost_limits.numpy(), scaled_limits, rtol=1e-12)


def test_bounds_without_settings():
    found = scaled(*estimates(False)[::2])
    assert found.lower.tolist() == [1e-6, 0.0, 0.0]
    assert found.upper.tolist() == [np.inf, 1e6, 1e6]
    assert found.unreachable_below.item() == -np.inf


def test_a_prior_that_is_nearly_certain_leaves_a_millionth_of_the_deviation():
    values = np.zeros((3, 5, 4))
    values[:, :, 1] = np.array([3.0, 0.5, 20.0])[:, None]
    log_prior = torch.full((5, 4), -100.0).double()
    log_prior[:, 0] = 0.0
    # With equal probabilities, actions deviate by 0, 1, 0, 0 times the value: root mean square 1/2.
    expected = 1e-6 * np.array([3.0, 0.5, 20.0]) / 2
    np.testing.assert_allclose(scaled(values, log_prior).spread.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(("share", "constant"), [(3e-13, False), (3e-14, True)])
def test_a_spread_counts_from_1e_13_of_the_size(share, constant):
    """Neither the number of states nor that of actions matters to it."""
    for states, particles in ((1, 2), (200, 2), (1, 100)):
        signs = np.tile([1.0, -1.0], (3, states, particles // 2))
        values = np.array([1.0, -1.0, 1e3])[:, None, None] * (1.0 + share * signs)
        assert scaled(values, None).constant.tolist() == [constant] * 3
