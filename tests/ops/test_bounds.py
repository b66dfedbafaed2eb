"""Checks of action bounds and cost limits: what passes, what comes back, and what is refused by name."""

import math

import pytest
import torch

from safe_components.ops import action_bounds, episode_limits, q_limits


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_action_bounds_are_vectors_of_the_default_dtype(make):
    low, high = action_bounds(make([-1.0, 0.0]), make([1.0, 3.0]))
    assert low.tolist() == [-1.0, 0.0]
    assert high.tolist() == [1.0, 3.0]
    assert low.dtype == high.dtype == torch.get_default_dtype()


def test_action_bounds_are_copies():
    given = torch.tensor([-1.0]), torch.tensor([1.0])
    for returned in action_bounds(*given):
        returned.fill_(7.0)
    assert [bound.item() for bound in given] == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([], [], r"a >= 1"),
        ([-1.0], [1.0, 1.0], r"got \(1,\) and \(2,\)"),
        ([[-1.0]], [[1.0]], r"got \(1, 1\) and \(1, 1\).*a single one"),
        (torch.tensor(-1.0), torch.tensor(1.0), r"got \(\)"),
        ([0.0, 1.0], [1.0, 1.0], "low < high"),
        ([0.0, 1.0], [1.0, 0.0], "low < high"),
        ([-math.inf], [math.inf], "finite"),
        ([-math.inf], [1.0], "finite"),
        ([-1.0], [math.nan], "finite"),
        ([-3e38], [3e38], "finite"),  # their difference overflows float32
    ],
)
def test_bad_action_bounds_are_named(low, high, message):
    with pytest.raises(ValueError, match=message):
        action_bounds(low, high)


@pytest.mark.parametrize("check", [episode_limits, q_limits])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (25, [25.0]),
        (0.0, [0.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        ((1, 2), [1.0, 2.0]),
        (torch.tensor(3), [3.0]),
        (torch.tensor([0.5], dtype=torch.float64), [0.5]),
        ((), []),
    ],
)
def test_limits_become_vectors_of_float64(check, given, expected):
    limits = check(given)
    assert limits.tolist() == expected
    assert limits.dtype == torch.float64


@pytest.mark.parametrize("check", [episode_limits, q_limits])
def test_limits_are_copies_without_gradient(check):
    given = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    limits = check(given)
    assert not limits.requires_grad
    limits.fill_(7.0)
    assert given.item() == 1.0


def test_only_limits_in_q_units_may_be_negative():
    assert q_limits([-0.5, 2.0]).tolist() == [-0.5, 2.0]
    with pytest.raises(ValueError, match=r"budget=\[-0\.5, 2\.0\] must be at least 0 \(cost per episode\)"):
        episode_limits([-0.5, 2.0], "budget")


@pytest.mark.parametrize("check", [episode_limits, q_limits])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (math.nan, r"limit=\[nan\] must be finite"),
        ([1.0, math.inf], r"limit=\[1\.0, inf\] must be finite"),
        ([[1.0, 2.0]], r"limit must be \[m\], one limit per cost, got shape \(1, 2\)"),
    ],
)
def test_bad_limits_are_named(check, given, message):
    with pytest.raises(ValueError, match=message):
        check(given, "limit")
