"""Calibration of a critic against the returns of the next steps."""

import numpy as np
import pytest
import torch

from safe_components.critics import CalibrationMoments, calibration, calibration_moments


def measured_by_hand(x, after, v, done, terminated, gamma, horizon):
    """One step at a time, in plain Python, for one quantity [N, T]."""
    rows, length = x.shape[0], x.shape[1] - horizon + 1
    out = np.zeros((rows, length))
    for n in range(rows):
        for t in range(length):
            total, j = 0.0, 0
            while True:
                total += gamma**j * x[n, t + j]
                j += 1
                if done[n, t + j - 1] or j == horizon:
                    break
            if not terminated[n, t + j - 1]:
                total += gamma**j * after[n, t + j - 1]
            out[n, t] = total - v[n, t]
    return out


@pytest.mark.parametrize("horizon", [1, 4, 12])
def test_it_is_the_regression_of_returns_on_advantages(horizon):
    generator = np.random.default_rng(horizon)
    shape, gamma = (3, 12), 0.9
    x, q, v, after = generator.normal(size=(4, *shape, 2))
    done = generator.random((*shape, 1)) < 0.2
    terminated = done & (generator.random((*shape, 1)) < 0.5)
    tensors = [torch.from_numpy(a) for a in (x, q, v, after, done, terminated)]
    found = calibration(calibration_moments(*tensors, gamma=gamma, horizon=horizon))
    for i in range(2):
        y = measured_by_hand(
            x[..., i], after[..., i], v[..., i], done[..., 0], terminated[..., 0], gamma, horizon
        )
        predicted = (q - v)[:, : y.shape[1], i]
        if y.size > 3:
            (slope, _), covariance = np.polyfit(predicted.ravel(), y.ravel(), 1, cov=True)
            assert found.slope[i].item() == pytest.approx(slope, rel=1e-9)
            assert found.slope_error[i].item() == pytest.approx(covariance[0, 0] ** 0.5, rel=1e-9)
        assert found.bias[i].item() == pytest.approx(y.mean(), rel=1e-9)


def test_sums_of_two_batches_are_those_of_both():
    torch.manual_seed(0)
    batch = torch.randn(4, 6, 5, 1, dtype=torch.float64)
    flag = torch.zeros(6, 5, 1, dtype=torch.bool)
    whole = calibration_moments(*batch, flag, flag, gamma=0.9, horizon=2)
    parts = [
        calibration_moments(*batch[:, rows], flag[rows], flag[rows], gamma=0.9, horizon=2)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    assert isinstance(parts[0] + parts[1], CalibrationMoments)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (4.0, 0.25), (-1.0, -1.0)])
def test_a_critic_that_exaggerates_has_a_slope_below_one(scale, expected):
    """Rewards with a known advantage and noise: the true slope is one over the exaggeration."""
    torch.manual_seed(1)
    advantage = torch.randn(100, 50, 1)
    x = advantage + 0.5 * torch.randn_like(advantage)
    zero, flag = torch.zeros_like(x), torch.zeros(100, 50, 1, dtype=torch.bool)
    found = calibration(
        calibration_moments(x, scale * advantage, zero, zero, flag, flag, gamma=0.9, horizon=1)
    )
    assert abs(found.slope.item() - expected) < 4 * found.slope_error.item()
    assert found.slope_error.item() < 0.05


def test_no_spread_has_no_slope():
    one, flag = torch.ones(2, 4, 1), torch.zeros(2, 4, 1, dtype=torch.bool)
    found = calibration(calibration_moments(one, one, one, one, flag, flag, gamma=0.5, horizon=2))
    assert found.slope.isnan()
    assert found.slope_error.isnan()
    assert found.bias.item() == pytest.approx(1.5 + 0.25 - 1.0)


def test_what_follows_a_terminal_state_may_be_undefined():
    x, end = torch.ones(1, 2, 1), torch.tensor([[[False], [True]]])
    after = torch.tensor([[[0.0], [torch.nan]]])
    sums = calibration_moments(x, x, 0 * x, after, end, end, gamma=1.0, horizon=2)
    assert sums.measured.item() == 2.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"horizon": 0}, "horizon=0 must lie between 1 and the 4 steps"),
        ({"horizon": 5}, "horizon=5"),
        ({"value": torch.zeros(2, 4)}, "must all be"),
        ({"done": torch.zeros(2, 4, dtype=torch.bool)}, "done and terminated"),
    ],
)
def test_bad_input(change, said):
    x, flag = torch.zeros(2, 4, 1), torch.zeros(2, 4, 1, dtype=torch.bool)
    names = ("signal", "action_value", "value", "next_value")
    arguments = dict.fromkeys(names, x) | {"done": flag, "terminated": flag, "gamma": 0.9, "horizon": 2}
    with pytest.raises(ValueError, match=said):
        calibration_moments(**(arguments | change))
