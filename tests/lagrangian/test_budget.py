"""The cost budget against the conversion, the schedule and sequences computed by hand."""

import math

import pytest
import torch
from devices import DEVICES

from safe_components.lagrangian import CostBudget, GradientMultiplier, PIDMultiplier
from safe_components.ops import q_cost_limit

DISCOUNT = {"gamma": 0.99, "episode_length": 500}
# With γ = 1 the conversion is the identity, so that sequences can be computed by hand.
UNDISCOUNTED = {"gamma": 1.0, "episode_length": 10}


def no_episodes(m=1):
    return torch.empty(0, m)


@pytest.mark.parametrize("cost_limit", [25.0, [25.0], [25.0, 10.0], torch.tensor([25.0, 0.0])])
@pytest.mark.parametrize("frames", [0, 1, 10**9])
def test_a_constant_limit_is_the_limit_and_its_conversion(cost_limit, frames):
    budget = CostBudget(cost_limit, **DISCOUNT)
    budget.observe(no_episodes(len(budget.cost_limit)), frames)
    expected = torch.as_tensor(cost_limit, dtype=torch.float64).reshape(-1)
    assert torch.equal(budget.cost_limit, expected)
    assert torch.equal(budget.q_limit, q_cost_limit(expected, **DISCOUNT))


def test_a_constant_limit_needs_no_episodes_to_be_right():
    # 25 * (1 - 0.99^500) / (0.01 * 500)
    assert CostBudget(25.0, **DISCOUNT).q_limit.item() == pytest.approx(5.0 * (1 - 0.99**500), rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_the_schedule_is_linear_and_ends(device):
    budget = CostBudget([20.0, 30.0], **DISCOUNT, start=[100.0, 10.0], decay_frames=1000).to(device)
    assert budget.cost_limit.tolist() == [100.0, 10.0]
    schedule = {
        0: [100.0, 10.0],
        250: [80.0, 15.0],
        500: [60.0, 20.0],
        1000: [20.0, 30.0],
        9999: [20.0, 30.0],
    }
    for frames, limits in schedule.items():
        budget.observe(no_episodes(2), frames)
        assert budget.cost_limit.tolist() == pytest.approx(limits, rel=1e-15)
        expected = [float(q_cost_limit(limit, **DISCOUNT)) for limit in limits]
        assert budget.q_limit.tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("device", DEVICES)
def test_feedback_tightens_by_the_mean_episode_and_loosens_again(device):
    feedback = GradientMultiplier([0.0, 0.0], lr=0.5)
    budget = CostBudget([10.0, 4.0], **UNDISCOUNTED, feedback=feedback).to(device)
    assert budget.q_limit.tolist() == [10.0, 4.0]
    # Mean costs 12 and 4; 16 and 3; 5 and 5: λ = (1, 0), (4, 0), (1.5, 0.5).
    steps = [
        ([[10.0, 4.0], [14.0, 4.0]], [5.0, 4.0]),
        ([], [5.0, 4.0]),  # no episode ended
        ([[16.0, 3.0]], [2.0, 4.0]),
        ([[5.0, 5.0]], [4.0, 4.0 / 1.5]),
        ([[0.0, 0.0]], [10.0, 4.0]),  # never looser than the limit itself
    ]
    for episodes, expected in steps:
        budget.observe(torch.tensor(episodes, device=device).reshape(-1, 2), frames=0)
        assert budget.q_limit.tolist() == pytest.approx(expected, rel=1e-15)
        assert budget.cost_limit.tolist() == [10.0, 4.0]


def test_feedback_compares_with_the_limit_of_the_schedule():
    feedback = PIDMultiplier(7.0, kp=0.0, ki=1.0, kd=0.0)
    budget = CostBudget(10.0, **UNDISCOUNTED, start=30.0, decay_frames=100, feedback=feedback)
    assert feedback.cost_limits.tolist() == [30.0]
    # d(t) = 20: an episode of 21 costs 1 too much, λ = 1. d(t) = 10: λ = 1 + 2.
    for frames, cost, limit, q_limit in ((50, 21.0, 20.0, 10.0), (100, 12.0, 10.0, 2.5)):
        budget.observe(torch.tensor([[cost]]), frames)
        assert feedback.cost_limits.tolist() == budget.cost_limit.tolist() == [limit]
        assert budget.q_limit.tolist() == [q_limit]


def test_a_feedback_that_starts_above_zero_tightens_from_the_start():
    feedback = GradientMultiplier(1.0, lr=0.1, init=3.0)
    assert CostBudget(10.0, **UNDISCOUNTED, feedback=feedback).q_limit.tolist() == [2.5]


@pytest.mark.parametrize("device", DEVICES)
def test_limits_change_in_place(device):
    feedback = GradientMultiplier(10.0, lr=1.0)
    budget = CostBudget(10.0, **UNDISCOUNTED, start=30.0, decay_frames=100, feedback=feedback).to(device)
    cost_limit, q_limit = budget.cost_limit, budget.q_limit
    budget.observe(torch.tensor([[11.0]]), 100)
    assert cost_limit.tolist() == [10.0]
    assert q_limit.tolist() == [5.0]
    state = CostBudget(2.0, **UNDISCOUNTED, feedback=GradientMultiplier(2.0, lr=1.0)).state_dict()
    budget.load_state_dict(state)
    assert q_limit.tolist() == [2.0]
    assert budget.q_limit is q_limit


def test_arguments_are_copied():
    limit, start = (torch.tensor([value], dtype=torch.float64) for value in (10.0, 30.0))
    budget = CostBudget(limit, **UNDISCOUNTED, start=start, decay_frames=100)
    limit.zero_()
    start.zero_()
    for frames, expected in ((0, 30.0), (100, 10.0)):
        budget.observe(no_episodes(), frames)
        assert budget.cost_limit.item() == expected


def test_a_checkpoint_continues():
    def make():
        feedback = PIDMultiplier([1.0, 1.0], kp=0.2, ki=0.1, kd=0.3, delay=2, max_value=2.0)
        return CostBudget([10.0, 5.0], **DISCOUNT, start=[20.0, 5.0], decay_frames=600, feedback=feedback)

    generator = torch.Generator().manual_seed(0)
    episodes = [20 * torch.rand(n, 2, generator=generator) for n in (3, 0, 2, 1, 4, 0, 2, 1)]
    whole, first, second = make(), make(), make()
    for i, costs in enumerate(episodes):
        whole.observe(costs, 100 * i)
        if i < 4:
            first.observe(costs, 100 * i)
        if i == 4:
            second.load_state_dict(first.state_dict())
            assert torch.equal(second.q_limit, first.q_limit)
            assert torch.equal(second.cost_limit, first.cost_limit)
        if i >= 4:
            second.observe(costs, 100 * i)
            assert torch.equal(second.q_limit, whole.q_limit)
            assert torch.equal(second.feedback(), whole.feedback())


def test_a_checkpoint_holds_the_limits_but_not_the_ends_of_the_schedule():
    saved = CostBudget(10.0, **UNDISCOUNTED, start=30.0, decay_frames=100)
    resumed = CostBudget(20.0, **UNDISCOUNTED, start=40.0, decay_frames=100)
    resumed.load_state_dict(saved.state_dict())
    assert resumed.cost_limit.item() == resumed.q_limit.item() == 30.0
    for frames, limit in ((75, 25.0), (100, 20.0)):
        resumed.observe(no_episodes(), frames)
        assert resumed.cost_limit.item() == resumed.q_limit.item() == limit


def test_it_has_nothing_to_learn_by_gradient():
    budget = CostBudget(10.0, **UNDISCOUNTED, feedback=PIDMultiplier(10.0))
    assert not list(budget.parameters())
    assert not budget.q_limit.requires_grad
    assert any(name.startswith("feedback.") for name in budget.state_dict())


@pytest.mark.parametrize(
    ("cost_limit", "kwargs", "message"),
    [
        (-1.0, {}, r"cost_limit=\[-1\.0\] must be at least 0"),
        (math.nan, {}, r"cost_limit=\[nan\] must be finite"),
        ([[1.0]], {}, r"cost_limit must be \[m\]"),
        (1.0, {"start": -1.0}, r"start=\[-1\.0\] must be at least 0"),
        (1.0, {"start": [2.0, 3.0]}, r"start=\[2\.0, 3\.0\] needs one limit per cost.*\[1\.0\]"),
        ([1.0, 2.0], {"start": 2.0}, r"start=\[2\.0\] needs one limit per cost"),
        (1.0, {"start": ()}, r"start=\[\] needs one limit per cost"),
        (1.0, {"start": 2.0, "decay_frames": 0}, "decay_frames=0 must be at least 1"),
        (1.0, {"gamma": 0.0}, r"gamma=0\.0"),
        (1.0, {"episode_length": 0}, "episode_length=0"),
        (1.0, {"feedback": PIDMultiplier([1.0, 1.0])}, "1 cost_limits cannot replace 2"),
    ],
)
def test_bad_settings_are_named(cost_limit, kwargs, message):
    with pytest.raises(ValueError, match=message):
        CostBudget(cost_limit, **{**DISCOUNT, **kwargs})


@pytest.mark.parametrize(
    ("episode_costs", "frames", "message"),
    [
        (torch.ones(3, 1), 0, r"\[n, 2\], got shape \(3, 1\)"),
        (torch.ones(2), 0, r"\[n, 2\], got shape \(2,\)"),
        (torch.full((1, 2), math.nan), 0, "nan"),
        (torch.ones(1, 2), -1, "frames=-1"),
    ],
)
def test_bad_observations_are_named(episode_costs, frames, message):
    feedback = GradientMultiplier([1.0, 1.0], lr=1.0)
    budget = CostBudget([1.0, 2.0], **DISCOUNT, feedback=feedback)
    with pytest.raises(ValueError, match=message):
        budget.observe(episode_costs, frames)
