"""A price for each limit of a range: interpolation and running means by hand."""

import math

import pytest
import torch

from safe_components.lagrangian import ExponentiatedMultiplier, LimitPrices


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def test_hats_sum_to_one_and_are_those_of_linear_interpolation():
    prices = LimitPrices([10.0, 0.0], [40.0, 1.0], knots=4)
    limits = torch.rand(100, 2) * torch.tensor([60.0, 2.0])  # some lie outside
    hats = prices.hats(limits)
    torch.testing.assert_close(hats.sum(-2), torch.ones(100, 2, dtype=torch.float64))
    knots = torch.stack([torch.linspace(10, 40, 4), torch.linspace(0, 1, 4)], -1)
    inside = torch.minimum(torch.maximum(limits, knots[0]), knots[-1]).double()
    torch.testing.assert_close((hats * knots).sum(-2), inside)


def test_the_logarithm_of_the_price_is_interpolated():
    prices = LimitPrices(0.0, 10.0, knots=2, max_value=None)
    prices.prices.lam.copy_(torch.tensor([0.2, 1.6]))
    expected = [0.2, 0.2 * 8**0.3, 1.6, 1.6]
    assert prices(column(0, 3, 10, 12)).flatten().tolist() == pytest.approx(expected)


def test_each_knot_follows_the_episodes_near_it():
    """Knots 10, 20 and 30; the episode of limit 12 counts 0.8 at the first and 0.2 at the second."""
    options = {"rate": 0.4, "kp": 0.3, "max_value": None}
    prices = LimitPrices(10.0, 30.0, knots=3, memory=2.0, **options)
    alone = [ExponentiatedMultiplier(limit, **options) for limit in (10.0, 20.0, 30.0)]
    prices.update(column(12, 20), column(24, 5))
    means = [(12.0, 24.0), ((0.2 * 12 + 20) / 1.2, (0.2 * 24 + 5) / 1.2), (30.0, 30.0)]
    for multiplier, (limit, cost) in zip(alone, means, strict=True):
        multiplier.set_cost_limits(limit)
        multiplier.update(cost)
    expected = torch.cat([multiplier.lam for multiplier in alone])
    torch.testing.assert_close(prices.prices.lam, expected)
    # The second batch is near the first knot only, and weighs 1 - exp(-1 / 2) there.
    prices.update(column(10), column(0))
    cost = 24 * math.exp(-1 / 2)
    assert prices.cost.flatten().tolist()[0] == pytest.approx(cost)
    assert prices.cost.flatten().tolist()[1] == pytest.approx(means[1][1])
    assert prices.cost[2].isnan().all()


def test_an_empty_batch_changes_nothing_and_a_checkpoint_continues():
    prices, other = LimitPrices(10.0, 30.0), LimitPrices(10.0, 30.0)
    prices.update(column(12, 20), column(24, 5))
    other.load_state_dict(prices.state_dict())
    prices.update(torch.empty(0, 1), torch.empty(0, 1))
    for each in (prices, other):
        each.update(column(15), column(30))
    assert torch.equal(prices(column(10, 15, 30)), other(column(10, 15, 30)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: LimitPrices(30.0, 10.0), "must be below high"),
        (lambda: LimitPrices([1.0, 2.0], 10.0), "one number per cost"),
        (lambda: LimitPrices(10.0, 30.0, knots=1), "knots=1"),
        (lambda: LimitPrices(10.0, 30.0, memory=0.0), "memory=0.0"),
        (lambda: LimitPrices(10.0, 30.0, rate=-1.0), "rate=-1.0"),
        (lambda: LimitPrices(10.0, 30.0)(torch.ones(4, 2)), r"\[..., 1\], got shape \(4, 2\)"),
        (
            lambda: LimitPrices(10.0, 30.0).update(torch.ones(4, 1), torch.ones(3, 1)),
            r"\(4, 1\) and \(3, 1\)",
        ),
        (lambda: LimitPrices(10.0, 30.0).update(column(20), column(math.nan)), "nan"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
