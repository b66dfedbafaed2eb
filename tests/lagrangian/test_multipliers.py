import pytest
import torch

from safe_components.lagrangian import GradientMultiplier, PIDMultiplier


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
    # delta:    4       8       -4      -4
    # EMA(.5):  4       6       1       -1.5
    # I:        .4      1.2     .8      .4
    # EMA(.75): 14      15      12.75   11.0625
    # two ago:  14      14      14      15
    # rise:     0       1       0       0
    # lam:      2+.4    3+1.2+2 .5+.8   -.75+.4 -> 0
    expected = [2.4, 6.2, 1.3, 0.0]
    for cost, lam in zip([14.0, 18.0, 6.0, 6.0], expected, strict=True):
        assert multiplier.update(cost).item() == pytest.approx(lam, abs=1e-12)
    assert multiplier.integral.item() == pytest.approx(0.4)


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
        clipped += int(gradient.clipped.sum())
    assert clipped > 0


def test_clipping_is_reported_and_recovers_at_once():
    for multiplier in (
        GradientMultiplier(10.0, lr=1.0, max_value=3.0),
        PIDMultiplier(10.0, kp=0.0, ki=1.0, kd=0.0, max_value=3.0),
    ):
        multiplier.update(12.0)
        assert not bool(multiplier.clipped)
        assert multiplier.update(50.0).item() == 3.0
        assert multiplier.update(9.0).item() == 2.0
        assert not bool(multiplier.clipped)
    over = GradientMultiplier(10.0, lr=1.0, max_value=3.0)
    over.update(50.0)
    assert bool(over.clipped)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientMultiplier([1.0, 2.0], lr=0.1, init=0.3),
        lambda: PIDMultiplier([1.0, 2.0], kp=0.3, ki=0.1, kd=0.5, delay=3),
    ],
)
def test_a_checkpoint_continues(make):
    generator = torch.Generator().manual_seed(0)
    costs = 4 * torch.rand(12, 2, generator=generator, dtype=torch.float64)
    whole, first, second = make(), make(), make()
    for cost in costs[:6]:
        whole.update(cost)
        first.update(cost)
    second.load_state_dict(first.state_dict())
    for cost in costs[6:]:
        assert torch.equal(whole.update(cost), second.update(cost))


def test_limits_can_follow_a_schedule():
    multiplier = GradientMultiplier(10.0, lr=1.0)
    multiplier.set_cost_limits(5.0)
    assert multiplier.update(6.0).item() == 1.0
    with pytest.raises(ValueError, match="cannot replace"):
        multiplier.set_cost_limits([1.0, 2.0])
    with pytest.raises(ValueError, match=r"-1\.0"):
        multiplier.set_cost_limits(-1.0)


def test_returned_value_is_not_the_state():
    multiplier = GradientMultiplier(10.0, lr=1.0)
    multiplier.update(12.0).zero_()
    assert multiplier.lam.item() == 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientMultiplier(-1.0, lr=0.1), "cost_limits"),
        (lambda: GradientMultiplier(1.0, lr=0.0), "lr=0.0"),
        (lambda: GradientMultiplier(1.0, lr=0.1, init=-1.0), "init=-1.0"),
        (lambda: GradientMultiplier(1.0, lr=0.1, max_value=0.0), "max_value=0.0"),
        (lambda: PIDMultiplier(1.0, kp=-1.0), "kp=-1.0"),
        (lambda: PIDMultiplier(1.0, ema_derivative=1.0), "ema_derivative=1.0"),
        (lambda: PIDMultiplier(1.0, delay=0), "delay=0"),
        (lambda: PIDMultiplier(1.0, init=2.0, max_value=1.0), "init=2.0"),
        (lambda: PIDMultiplier(1.0).update(float("nan")), "nan"),
        (lambda: PIDMultiplier(1.0).update([1.0, 2.0]), "2 costs for 1"),
        (lambda: PIDMultiplier(1.0).update(torch.ones(5, 1)), r"\(5, 1\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
