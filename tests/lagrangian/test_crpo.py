"""The switch of CRPO: the reward while all limits are kept, and the cost that is most over its limit else."""

import pytest
import torch

from safe_components.lagrangian import CRPOSwitch


@pytest.mark.parametrize(
    ("cost", "lam"),
    [
        ([25.0, 10.0], [0, 0]),  # at the limits
        ([25.1, 3.0], [1, 0]),
        ([30.0, 13.0], [0, 1]),  # 1.2 and 1.3 times the limit
        ([1e6, 0.0], [1, 0]),
    ],
)
def test_one_cost_is_chosen_by_its_share_over_the_limit(cost, lam):
    switch = CRPOSwitch([25.0, 10.0])
    assert switch.update(cost).tolist() == lam
    assert switch().tolist() == lam
    assert not switch.clipped.any()


def test_a_cost_over_a_limit_of_zero_comes_first():
    assert CRPOSwitch([0.0, 10.0]).update([0.01, 1000.0]).tolist() == [1, 0]


def test_the_tolerance_is_added_to_the_limit():
    switch = CRPOSwitch(25.0, tolerance=5.0)
    assert [switch.update(cost).item() for cost in (29.0, 30.0, 31.0, 20.0)] == [0, 0, 1, 0]


def test_new_limits_take_effect_and_the_choice_is_saved():
    switch, other = CRPOSwitch(25.0), CRPOSwitch(25.0)
    switch.set_cost_limits(10.0)
    switch.update(20.0)
    other.load_state_dict(switch.state_dict())
    assert other().tolist() == [1]
    assert torch.equal(other.cost_limits, switch.cost_limits)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: CRPOSwitch(25.0, tolerance=-1.0), "tolerance=-1.0"),
        (lambda: CRPOSwitch(-1.0), "cost_limits"),
        (lambda: CRPOSwitch(1.0).update(float("nan")), "nan"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
