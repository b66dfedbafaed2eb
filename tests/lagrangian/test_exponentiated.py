"""The multiplier whose logarithm is controlled."""

import math

import pytest
import torch

from safe_components.lagrangian import ExponentiatedMultiplier


def run(multiplier, costs):
    return torch.stack([multiplier.update(cost) for cost in costs])


def test_it_is_the_formula():
    multiplier = ExponentiatedMultiplier([20.0, 5.0], 0.1, 0.7, init=0.4, min_value=0.3, max_error=1.5)
    integral, generator = [0.4, 0.4], torch.Generator().manual_seed(0)
    for _ in range(60):
        cost = 30 * torch.rand(2, generator=generator, dtype=torch.float64)
        found = multiplier.update(cost)
        for i, d in enumerate((20.0, 5.0)):
            error = min(max(math.log(cost[i].item() / d), -0.5), 1.5)
            integral[i] = max(integral[i] * math.exp(0.1 * error), 0.3)
            value = integral[i] * math.exp(0.7 * error)
            integral[i] = max(min(integral[i], 2.0 * math.exp(-0.7 * max(error, 0.0))), 0.3)
            assert found[i].item() == pytest.approx(min(value, 2.0), rel=1e-12)
            assert multiplier.clipped[i].item() == (value >= 2.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_unit_of_the_cost_does_not_matter(scale):
    torch.manual_seed(1)
    costs = 50 * torch.rand(40, 1, dtype=torch.float64)
    expected = run(ExponentiatedMultiplier(25.0), costs)
    found = run(ExponentiatedMultiplier(25.0 * scale), scale * costs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_it_settles_where_the_cost_meets_the_limit():
    """Episodes whose cost falls with λ and is seen after a while, through an average over 10 updates."""
    multiplier = ExponentiatedMultiplier(25.0)
    seen, history = 60.0, []
    for _ in range(1000):
        lam = multiplier.update(seen).item()
        seen += 0.1 * (60.0 * math.exp(-lam) - seen)
        history.append(lam)
    target = math.log(60.0 / 25.0)
    assert history[-1] == pytest.approx(target, rel=1e-3)
    assert max(history[300:]) < 1.1 * target


def test_it_does_not_wind_up():
    """However long the cost was too high, λ leaves its bound at once when the cost falls, by all of kp e."""
    multiplier = ExponentiatedMultiplier(25.0, rate=0.03, kp=0.5, max_value=3.0)
    run(multiplier, [25.0 * math.e**1.5] * 1000)
    assert multiplier.lam.item() == pytest.approx(3.0)
    assert multiplier.clipped.item()
    assert multiplier.update(25.0).item() == pytest.approx(3.0 * math.exp(-0.5 * 1.5))
    assert not multiplier.clipped.item()


@pytest.mark.parametrize(("cost", "direction"), [(0.0, 0), (1e-9, 1), (5.0, 1)])
def test_a_limit_of_zero(cost, direction):
    multiplier = ExponentiatedMultiplier(0.0, kp=0.0)
    lam = run(multiplier, [cost] * 5)
    assert lam.isfinite().all()
    assert (lam[-1] > 0.5).item() == (direction > 0)


def test_a_cost_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"episode_cost=\[-1.0\] must be at least 0"):
        ExponentiatedMultiplier(25.0).update(-1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"rate": 0.0},
        {"rate": math.inf},
        {"kp": -1.0},
        {"min_value": 0.0},
        {"max_value": 0.1},
        {"init": 3.0},
        {"init": 0.05},
        {"kp": math.nan},
        {"max_error": 0.0},
        {"max_error": math.inf},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match="must"):
        ExponentiatedMultiplier(25.0, **bad)
