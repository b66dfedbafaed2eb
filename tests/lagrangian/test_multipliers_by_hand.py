"""Multipliers against sequences computed by hand; what all have in common is in laws/test_multipliers.py."""

import pytest
import torch

from safe_components.lagrangian import MAX_MULTIPLIER, GradientMultiplier, PIDMultiplier


def test_gradient_by_hand():
    multiplier = GradientMultiplier([10.0, 5.0], lr=0.5, init=1.0)
    assert multiplier.update([12.0, 4.0]).tolist() == [2.0, 0.5]
    assert multiplier.update([12.0, 3.0]).tolist() == [3.0, 0.0]  # 0.5 - 1 is cut at 0
    assert multiplier.update([8.0, 6.0]).tolist() == [2.0, 0.5]
    assert multiplier().tolist() == [2.0, 0.5]


def test_pid_by_hand():
    multiplier = PIDMultiplier(
        10.0, kp=0.5, ki=0.1, kd=2.0, ema_proportional=0.5, ema_derivative=0.75, delay=2
    )
    # J:        14      18      6       6
    # δ:        4       8       -4      -4
    # EMA(.5):  4       6       1       -1.5
    # I:        .4      1.2     .8      .4
    # EMA(.75): 14      15      12.75   11.0625
    # two ago:  14      14      14      15
    # rise:     0       1       0       0
    # λ:        2+.4    3+1.2+2 .5+.8   -.75+.4 -> 0
    expected = [2.4, 6.2, 1.3, 0.0]
    for cost, lam in zip([14.0, 18.0, 6.0, 6.0], expected, strict=True):
        assert multiplier.update(cost).item() == pytest.approx(lam, abs=1e-12)
    assert multiplier.integral.item() == pytest.approx(0.4)


def test_derivative_looks_back_by_its_delay():
    multiplier = PIDMultiplier([0.0, 0.0], kp=0.0, ki=0.0, kd=1.0, ema_derivative=0.0, delay=3)
    # J:          10  11  13  16  20  25  24  20      and the same with rises of half the size
    # three ago:  10  10  10  10  11  13  16  20      (the first cost stands in for those before it)
    # rise:       0   1   3   6   9   12  8   0
    costs = [10.0, 11.0, 13.0, 16.0, 20.0, 25.0, 24.0, 20.0]
    for cost, rise in zip(costs, [0.0, 1.0, 3.0, 6.0, 9.0, 12.0, 8.0, 0.0], strict=True):
        assert multiplier.update([cost, cost / 2]).tolist() == [rise, rise / 2]


def test_pid_integral_never_falls_below_zero():
    multiplier = PIDMultiplier(10.0, kp=0.0, ki=1.0, kd=0.0)
    for _ in range(5):
        multiplier.update(0.0)
    assert multiplier.update(11.0).item() == pytest.approx(1.0)


def test_integral_alone_is_the_gradient_multiplier():
    generator = torch.Generator().manual_seed(0)
    integral = PIDMultiplier([3.0, 4.0], kp=0.0, ki=0.2, kd=0.0, init=0.5, max_value=2.0)
    gradient = GradientMultiplier([3.0, 4.0], lr=0.2, init=0.5, max_value=2.0)
    clipped = 0
    for _ in range(50):
        cost = 8 * torch.rand(2, generator=generator)
        assert torch.equal(integral.update(cost), gradient.update(cost))
        assert torch.equal(integral.clipped, gradient.clipped)
        clipped += int(gradient.clipped.sum())
    assert 0 < clipped < 100


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientMultiplier(10.0, lr=1.0, max_value=3.0),
        lambda: PIDMultiplier(10.0, kp=0.0, ki=1.0, kd=0.0, max_value=3.0),
    ],
)
def test_a_multiplier_at_its_cap_is_reported_and_leaves_it_at_once(make):
    multiplier = make()
    for cost, lam, clipped in ((12.0, 2.0, False), (11.0, 3.0, True), (50.0, 3.0, True), (9.0, 2.0, False)):
        assert multiplier.update(cost).item() == lam
        assert bool(multiplier.clipped) is clipped


def test_an_integral_at_its_cap_under_a_falling_proportional_term_is_not_clipped():
    multiplier = PIDMultiplier(10.0, kp=0.25, ki=1.0, kd=0.0, ema_proportional=0.0, max_value=3.0, init=3.0)
    assert multiplier.update(10.0).item() == 3.0
    assert multiplier.clipped
    assert multiplier.update(9.0).item() == pytest.approx(2.0 - 0.25)
    assert not multiplier.clipped


@pytest.mark.parametrize(
    "make", [lambda: GradientMultiplier(25.0, lr=0.01), lambda: PIDMultiplier(25.0)], ids=["gradient", "pid"]
)
def test_a_long_violation_is_undone_in_a_bounded_time(make):
    """Without a bound, 200 updates at a cost of 100 take 600 updates at 0 to undo."""
    multiplier = make()
    for _ in range(200):
        multiplier.update(100.0)
    assert multiplier.lam.item() == MAX_MULTIPLIER == 20.0
    assert multiplier.clipped
    # The integral comes down by at most ki d = 0.25 an update; the proportional term helps.
    undone = next(n for n in range(1, 600) if multiplier.update(0.0).item() == 0)
    assert 60 < undone <= 80


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientMultiplier(1.0, lr=0.0), "lr=0.0"),
        (lambda: GradientMultiplier(1.0, lr=float("inf")), "lr=inf"),
        (lambda: PIDMultiplier(1.0, kp=-1.0), "kp=-1.0"),
        (lambda: PIDMultiplier(1.0, ki=float("nan")), "ki=nan"),
        (lambda: PIDMultiplier(1.0, kd=float("inf")), "kd=inf"),
        (lambda: PIDMultiplier(1.0, ema_proportional=-0.1), "ema_proportional=-0.1"),
        (lambda: PIDMultiplier(1.0, ema_derivative=1.0), "ema_derivative=1.0"),
        (lambda: PIDMultiplier(1.0, delay=0), "delay=0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
