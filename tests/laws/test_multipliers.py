"""Laws of every multiplier. A new one joins with a line in `MULTIPLIERS`.

Each entry takes limits ``[m]``, a factor on the gains (multiplier per cost), ``init`` and ``max_value``
(none unless given).
"""

import pytest
import torch
from devices import DEVICES

from safe_components.lagrangian import GradientMultiplier, Multiplier, PIDMultiplier


def unbounded(kwargs):
    return {"max_value": None, **kwargs}


MULTIPLIERS = {
    "gradient": lambda limits, gain=1.0, **kwargs: GradientMultiplier(
        limits, 0.1 * gain, **unbounded(kwargs)
    ),
    "integral": lambda limits, gain=1.0, **kwargs: PIDMultiplier(
        limits, 0.0, 0.1 * gain, 0.0, **unbounded(kwargs)
    ),
    "pid": lambda limits, gain=1.0, **kwargs: PIDMultiplier(
        limits, 0.3 * gain, 0.1 * gain, 0.5 * gain, ema_derivative=0.5, delay=3, **unbounded(kwargs)
    ),
}
pytestmark = [
    pytest.mark.parametrize("make", MULTIPLIERS.values(), ids=MULTIPLIERS.keys()),
    pytest.mark.parametrize("device", DEVICES),
]


def costs(n=40, m=2, device="cpu"):
    """Episode costs around limits of 10, with runs above and below them."""
    generator = torch.Generator().manual_seed(0)
    level = 10.0 + 8.0 * torch.sin(torch.arange(n).unsqueeze(1) / 4.0)
    return (level + 4.0 * torch.randn(n, m, generator=generator)).clamp_min(0.0).double().to(device)


def history(multiplier, episode_costs):
    """Multipliers ``[n, m]`` after each of ``n`` updates."""
    return torch.stack([multiplier.update(cost) for cost in episode_costs])


def test_it_starts_at_its_initial_value_and_is_no_parameter(make, device):
    multiplier = make([1.0, 2.0], init=0.3).to(device)
    assert isinstance(multiplier, Multiplier)
    assert multiplier().tolist() == multiplier.lam.tolist() == [0.3, 0.3]
    assert not list(multiplier.parameters())


def test_it_is_never_negative_and_reacts(make, device):
    lam = history(make([10.0, 10.0]).to(device), costs(device=device))
    assert (lam >= 0).all()
    assert (lam == 0).any()
    assert (lam > 0).any()


def test_it_grows_over_the_limit_and_shrinks_under_it_to_zero(make, device):
    multiplier = make([10.0]).to(device)
    above = history(multiplier, [15.0] * 8)
    assert (above.diff(dim=0) > 0).all()
    below = torch.cat([above[-1:], history(multiplier, [4.0] * 80)]).squeeze(1)
    assert ((below.diff() < 0) | (below[1:] == 0)).all()
    assert below[-1] == 0


def test_a_long_time_under_the_limit_is_soon_forgotten(make, device):
    multiplier = make([10.0]).to(device)
    assert (history(multiplier, [0.0] * 200) == 0).all()
    # An integral that fell below zero would take 200 updates of the same size to return.
    assert history(multiplier, [20.0] * 20)[-1] > 0


def test_the_cap_holds_and_is_reported(make, device):
    multiplier = make([10.0, 10.0], max_value=2.0).to(device)
    for _ in range(30):
        multiplier.update([20.0, 5.0])
    assert multiplier.lam.tolist() == [2.0, 0.0]
    assert multiplier.clipped.tolist() == [True, False]
    for _ in range(60):
        multiplier.update([0.0, 5.0])
    assert multiplier.lam.tolist() == [0.0, 0.0]
    assert multiplier.clipped.tolist() == [False, False]


def test_without_a_cap_nothing_is_reported_as_clipped(make, device):
    multiplier = make([10.0]).to(device)
    multiplier.update(1e9)
    assert multiplier.lam > 1e7
    assert not multiplier.clipped


@pytest.mark.parametrize("unit", [1e-3, 8.0, 1e4])
def test_the_unit_of_the_cost_cancels(unit, make, device):
    """Costs and limits times c, with gains divided by c, give the same multipliers."""
    episode_costs, limits = costs(device=device), torch.tensor([10.0, 7.0])
    expected = history(make(limits, init=0.3).to(device), episode_costs)
    scaled = history(make(limits.double() * unit, 1.0 / unit, init=0.3).to(device), episode_costs * unit)
    # A float64 sum of 40 terms: rounding of order 40 eps.
    torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=1e-12)


def test_each_cost_moves_its_own_multiplier_only(make, device):
    episode_costs, limits = costs(m=3, device=device), [10.0, 7.0, 0.0]
    together = history(make(limits, max_value=1.5).to(device), episode_costs)
    for i, limit in enumerate(limits):
        alone = history(make([limit], max_value=1.5).to(device), episode_costs[:, i : i + 1])
        assert torch.equal(together[:, i : i + 1], alone)


def test_a_single_limit_is_a_vector_of_one(make, device):
    number, vector = make(10.0).to(device), make([10.0]).to(device)
    for cost in costs(m=1, device=device):
        assert torch.equal(number.update(float(cost)), vector.update(cost))


def test_new_limits_are_those_of_the_next_update(make, device):
    moved, fixed = make([1.0, 1.0]).to(device), make([10.0, 7.0]).to(device)
    moved.set_cost_limits([10.0, 7.0])
    assert torch.equal(history(moved, costs(device=device)), history(fixed, costs(device=device)))


def test_a_checkpoint_continues(make, device):
    whole, first, second = (make([1.0, 1.0], max_value=2.0).to(device) for _ in range(3))
    episode_costs = costs(device=device)
    for multiplier in (whole, first):
        multiplier.set_cost_limits([10.0, 7.0])
    expected = history(whole, episode_costs)
    history(first, episode_costs[:17])
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(), expected[16])
    assert torch.equal(second.clipped, first.clipped)
    assert torch.equal(history(second, episode_costs[17:]), expected[17:])


def test_returned_values_are_copies(make, device):
    multiplier = make([10.0]).to(device)
    for returned in (multiplier.update(30.0), multiplier()):
        expected = returned.item()
        returned.zero_()
        assert multiplier.lam.item() == expected > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda make: make([-1.0]), "cost_limits"),
        (lambda make: make([float("inf")]), "cost_limits"),
        (lambda make: make([1.0], init=-1.0), "init=-1.0"),
        (lambda make: make([1.0], init=float("inf")), "init=inf"),
        (lambda make: make([1.0], init=2.0, max_value=1.0), "init=2.0"),
        (lambda make: make([1.0], max_value=0.0), "max_value=0.0"),
        (lambda make: make([1.0]).set_cost_limits([1.0, 2.0]), "2 cost_limits cannot replace 1"),
        (lambda make: make([1.0]).set_cost_limits(-1.0), r"-1\.0"),
        (lambda make: make([1.0]).update(float("nan")), "nan"),
        (lambda make: make([1.0]).update([1.0, 2.0]), "2 costs for 1"),
        (lambda make: make([1.0]).update(torch.ones(5, 1)), r"\(5, 1\)"),
    ],
)
def test_bad_input_is_named(call, message, make, device):
    with pytest.raises(ValueError, match=message):
        call(make)
