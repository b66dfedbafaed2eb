"""Conversion of a limit per episode to Q units, against the sum it stands for."""

import pytest
import torch

from safe_components.ops import q_cost_limit


@pytest.mark.parametrize("gamma", [0.5, 0.99, 0.9999, 1 - 1e-9])
@pytest.mark.parametrize("length", [1, 10, 1000])
def test_is_the_discounted_sum_of_an_even_cost(gamma, length):
    steps = sum(gamma**t * 25.0 / length for t in range(length))
    assert float(q_cost_limit(25.0, gamma, length)) == pytest.approx(steps, rel=1e-12)


def test_no_discount_is_the_limit_itself_and_is_approached():
    assert float(q_cost_limit(25.0, 1.0, 500)) == 25.0
    assert float(q_cost_limit(25.0, 1 - 1e-12, 500)) == pytest.approx(25.0, rel=1e-9)


def test_accepts_numbers_sequences_and_tensors():
    one = q_cost_limit(10, 0.9, 5)
    assert one.shape == ()
    assert one.dtype == torch.float64
    assert q_cost_limit([10.0, 20.0], 0.9, 5).tolist() == pytest.approx([float(one), 2 * float(one)])
    single = q_cost_limit(torch.tensor([10.0]), 0.9, 5)
    assert single.dtype == torch.float32
    assert q_cost_limit(torch.tensor([10]), 0.9, 5).dtype == torch.float64


def test_gamma_one_does_not_alias_the_argument():
    limit = torch.tensor([1.0])
    q_cost_limit(limit, 1.0, 5).add_(1.0)
    assert limit.item() == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 0.9, 10), r"cost_limit=\[-1\.0\] must be at least 0"),
        (([1.0, -1.0], 0.9, 10), r"cost_limit=\[1\.0, -1\.0\]"),
        ((float("nan"), 0.9, 10), r"cost_limit=\[nan\]"),
        ((1.0, 0.0, 10), "gamma=0.0"),
        ((1.0, 1.1, 10), "gamma=1.1"),
        ((1.0, float("nan"), 10), "gamma=nan"),
        ((1.0, 0.9, 0), "episode_length=0"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        q_cost_limit(*arguments)
