"""The squashing map: its values and its slope, and how a policy says that it squashes."""

import copy
import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import TanhNormal

from safe_components.ops import Squash, is_gaussian, squash_of
from safe_components.policies import SquashedNormal, gaussian_policy, tanh_gaussian_policy

CENTER, HALF = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_is_that_of_the_map(dtype):
    squash = Squash(CENTER.to(dtype), HALF.to(dtype))
    value = torch.linspace(-3.0, 3.0, 20, dtype=dtype).reshape(10, 2)
    jacobian = torch.func.vmap(torch.func.jacrev(squash))(value)
    expected = torch.linalg.det(jacobian).log()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(squash.log_slope(value), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [-80.0, 80.0])
def test_the_slope_is_exact_where_tanh_is_one(value):
    # 1 - tanh^2 x = 1 / cosh^2 x -> 4 exp(-2 |x|)
    slope = Squash(CENTER[:1], HALF[:1]).log_slope(torch.tensor([value]))
    torch.testing.assert_close(slope.double(), torch.tensor(4.0).double().log() - 160.0, rtol=1e-6, atol=0.0)


def test_draws_and_their_scores_are_those_of_torchrl():
    torch.manual_seed(0)
    loc, scale = torch.randn(5, 2), torch.rand(5, 2) + 0.1
    ours = SquashedNormal(loc, torch.diag_embed(scale), Squash(CENTER, HALF))
    theirs = TanhNormal(loc, scale, low=CENTER - HALF, high=CENTER + HALF)
    for name in ("sample_and_log_prob", "rsample_and_log_prob"):
        drawn = []
        for dist in (ours, theirs):
            torch.manual_seed(1)
            drawn.append(getattr(dist, name)((7,)))
        torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.deterministic_sample, theirs.deterministic_sample)


def test_a_far_draw_is_scored_where_it_was_drawn():
    # Without noise to speak of, the entropy of x is known, and a = tanh(40) rounds to 1.
    dist = SquashedNormal(torch.tensor([40.0]), torch.tensor([[0.1]]), Squash(torch.zeros(1), torch.ones(1)))
    torch.manual_seed(0)
    action, log_prob = dist.sample_and_log_prob((10_000,))
    assert (action == 1.0).all()
    # E log p(a) = -H(x) - E log(1 - tanh^2 x), where the latter is log 4 - 80. The deviation of one score is
    # that of z^2 / 2 + 0.2 z, below 0.75; five errors of the mean.
    expected = 80.0 - math.log(4.0) - (0.5 + 0.5 * math.log(2.0 * math.pi) + math.log(0.1))
    assert (log_prob.mean() - expected).abs() < 5.0 * 0.75 / 100.0


def test_a_policy_says_that_it_squashes_and_moves_its_bounds():
    policy = gaussian_policy(3, [-1.0, 0.0], [1.0, 4.0], hidden_sizes=(8,), squash=True)
    assert is_gaussian(policy)
    for moved in (policy, copy.deepcopy(policy).double()):
        squash = squash_of(moved)
        dtype = next(moved.parameters()).dtype
        assert squash is moved.module[0].module.squash  # in a copy, the copy's
        torch.testing.assert_close((squash.center, squash.half_range), (CENTER.to(dtype), HALF.to(dtype)))
        observation = torch.zeros(2, 3, dtype=dtype)
        assert moved(TensorDict(observation=observation, batch_size=2))["action"].dtype == dtype
    assert squash_of(policy.to("meta")).center.device.type == "meta"
    assert squash_of(gaussian_policy(3, [-1.0], [1.0])) is None
    assert squash_of(tanh_gaussian_policy(3, [-1.0], [1.0])) is None  # it writes no scale_tril
    assert squash_of(lambda observation: observation) is None
