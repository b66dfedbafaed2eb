import numpy as np
import pytest
import torch

from safe_components.ops import aggregate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_numpy(dtype):
    q = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    n = q.numpy()
    expected = {
        "min": n.min(0),
        "mean": n.mean(0),
        "max": n.max(0),
        "conservative": n.mean(0) + 0.7 * n.std(0),
        "first": n[0],
    }
    for how, value in expected.items():
        result = aggregate(q, how, std_coef=0.7)
        assert result.dtype == dtype
        np.testing.assert_allclose(result.numpy(), value, rtol=1e-5)


def test_one_member_is_itself_with_a_gradient():
    q = torch.tensor([[1.0, 2.0]], requires_grad=True)
    for how in ("min", "mean", "max", "conservative", "first"):
        (gradient,) = torch.autograd.grad(aggregate(q, how).sum(), q)
        assert gradient.tolist() == [[1.0, 1.0]]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="'median' is not one of min, mean, max, conservative, first"):
        aggregate(torch.zeros(2, 3), "median")
    with pytest.raises(ValueError, match="at least one member"):
        aggregate(torch.zeros(0, 3), "min")
