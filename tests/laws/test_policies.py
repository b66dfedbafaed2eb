"""Laws of every policy. A new one joins with one line in `POLICIES`."""

import copy
import math
from functools import partial

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from torch.distributions import (
    AffineTransform,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torchrl.envs.utils import ExplorationType, set_exploration_type

from safe_components.policies import deterministic_policy, gaussian_policy, tanh_gaussian_policy

LOW, HIGH = [-1.0, 0.0, -5.0], [1.0, 4.0, -4.0]
HALF = (torch.tensor(HIGH) - torch.tensor(LOW)) / 2
MIN_STD = 0.05
GAUSSIAN = {
    "gaussian, full": partial(gaussian_policy, covariance="full", min_std=MIN_STD),
    "gaussian, diagonal": partial(gaussian_policy, covariance="diagonal", min_std=MIN_STD),
}
SQUASHED = {
    f"squashed, {kind}": partial(gaussian_policy, covariance=kind, min_std=MIN_STD, squash=True)
    for kind in ("full", "diagonal")
}
STOCHASTIC = GAUSSIAN | SQUASHED | {"tanh gaussian": partial(tanh_gaussian_policy, min_std=MIN_STD)}
POLICIES = STOCHASTIC | {"deterministic": deterministic_policy}


def each(policies):
    return pytest.mark.parametrize("make", policies.values(), ids=policies.keys())


def made(make, scale=0.3, dtype=torch.float32, device="cpu"):
    """A policy moved away from its initial parameters, and its observations."""
    torch.manual_seed(0)
    policy = make(4, LOW, HIGH, hidden_sizes=(16,)).to(device).to(dtype)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn(p.shape).to(p))
    return policy, torch.randn(32, 4).to(device, dtype)


def data(observation):
    return TensorDict(observation=observation, batch_size=observation.shape[:-1])


def acted(policy, observation, mode=ExplorationType.DETERMINISTIC):
    with set_exploration_type(mode):
        return policy(data(observation))


def reference(outputs, squash):
    """The distribution of the actions by torch, in float64, from the parameters that a policy writes."""
    outputs = outputs.double()
    if "scale_tril" in outputs:
        normal = MultivariateNormal(outputs["loc"], scale_tril=outputs["scale_tril"])
    else:
        normal = Independent(Normal(outputs["loc"], outputs["scale"]), 1)
    if not squash:
        return normal
    low, high = (torch.tensor(x, dtype=torch.float64, device=outputs["loc"].device) for x in (LOW, HIGH))
    moves = [TanhTransform(cache_size=1), AffineTransform((low + high) / 2, (high - low) / 2)]
    return TransformedDistribution(normal, moves)


@each(POLICIES)
@pytest.mark.parametrize("scale", [0.0, 0.3, 10.0])
def test_the_deterministic_action_is_inside_the_bounds_and_repeats(make, scale):
    policy, observation = made(make, scale)
    action = acted(policy, 10.0 * observation)["action"]
    assert ((torch.tensor(LOW) <= action) & (action <= torch.tensor(HIGH))).all()
    torch.testing.assert_close(acted(policy, 10.0 * observation)["action"], action, rtol=0, atol=0)


@each(POLICIES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_outputs_have_the_shape_dtype_and_device_of_the_observation(make, lead, dtype, device):
    policy, _ = made(make, dtype=dtype, device=device)
    outputs = acted(policy, torch.randn(*lead, 4).to(device, dtype), ExplorationType.RANDOM)
    shapes = {"action": (3,), "loc": (3,), "scale": (3,), "scale_tril": (3, 3), "observation": (4,)}
    for name, value in outputs.items():
        assert value.shape == (*lead, *shapes[name]), name
        assert (value.dtype, value.device.type) == (dtype, device), name


@each(POLICIES)
def test_states_are_acted_on_one_by_one(make):
    policy, observation = made(make, dtype=torch.float64)
    together = acted(policy, observation)["action"]
    alone = torch.stack([acted(policy, o)["action"] for o in observation])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@each(POLICIES)
def test_every_parameter_receives_a_gradient_through_a_random_action(make):
    policy, observation = made(make)
    action = acted(policy, observation, ExplorationType.RANDOM)["action"]
    gradient = torch.autograd.grad(action.square().sum(), list(policy.parameters()))
    assert all(g.any() for g in gradient)


@each(POLICIES)
def test_state_and_copies_give_the_same_action(make):
    policy, observation = made(make)
    loaded, _ = made(make, scale=0.0)
    loaded.load_state_dict(policy.state_dict())
    expected = acted(policy, observation)["action"]
    for other in (loaded, copy.deepcopy(policy)):
        torch.testing.assert_close(acted(other, observation)["action"], expected, rtol=0, atol=0)


@each(STOCHASTIC)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_is_that_of_torch_distributions(make, dtype, device):
    policy, observation = made(make, dtype=dtype, device=device)
    # A tenth of the range away from the bounds, where the inverse of tanh keeps its digits.
    share = 0.1 + 0.8 * torch.rand(len(observation), 3)
    action = (torch.tensor(LOW) + 2.0 * HALF * share).to(device, dtype)
    ours = policy.get_dist(data(observation)).log_prob(action)
    expected = reference(acted(policy, observation), make not in GAUSSIAN.values()).log_prob(action.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


@each(STOCHASTIC)
def test_random_actions_have_the_moments_of_the_distribution(make):
    policy, observation = made(make, dtype=torch.float64)
    draws = 20_000
    observation = observation[:1].expand(draws, 4)
    with torch.no_grad():
        outputs = acted(policy, observation, ExplorationType.RANDOM)
        drawn = outputs["action"]
        expected = reference(outputs[0], make not in GAUSSIAN.values()).sample((draws,))
    assert drawn.unique(dim=0).shape[0] == draws
    # Both whitened by one factor, so that each coordinate has variance 1, and each product of two at most 2.
    factor = torch.linalg.cholesky(expected.T.cov())
    white = [torch.linalg.solve_triangular(factor, x.T, upper=False) for x in (drawn, expected)]
    five_errors = 5.0 * (2.0 / draws) ** 0.5
    torch.testing.assert_close(*(x.mean(1) for x in white), rtol=0.0, atol=five_errors)
    torch.testing.assert_close(*(x.cov() for x in white), rtol=0.0, atol=five_errors * 2.0**0.5)


@each(GAUSSIAN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 0.3, 10.0])
def test_the_mean_is_inside_and_the_factor_is_lower_triangular_above_the_floor(make, scale, dtype):
    policy, observation = made(make, scale, dtype)
    outputs = acted(policy, 10.0 * observation)
    loc, tril = outputs["loc"], outputs["scale_tril"]
    torch.testing.assert_close(outputs["action"], loc, rtol=0, atol=0)
    assert ((torch.tensor(LOW) <= loc) & (loc <= torch.tensor(HIGH))).all()
    assert not tril.triu(1).any()
    floor = MIN_STD * HALF
    assert (tril.diagonal(dim1=-2, dim2=-1) >= floor * (1.0 - 1e-6)).all()  # up to rounding


@each(POLICIES)
def test_the_quiet_action_starts_at_the_center_in_every_state(make):
    policy = make(4, [-1.0, 0.0], [1.0, 3.0], hidden_sizes=(16, 16))
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        action = policy(TensorDict({"observation": torch.randn(50, 4)}, [50]))["action"]
    assert (action - torch.tensor([0.0, 1.5])).abs().amax() < 0.03


@each(POLICIES)
def test_a_nested_observation_is_read_and_states_are_restored(make):
    one = make(4, [-1.0], [1.0], hidden_sizes=(8,), observation_key=("agent", "state"))
    two = make(4, [0.0], [5.0], hidden_sizes=(8,), observation_key=("agent", "state"))
    data = TensorDict({("agent", "state"): torch.randn(6, 4)}, [6])
    with set_exploration_type(ExplorationType.RANDOM):
        one(data.clone())["action"].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in one.parameters())
    two.load_state_dict(one.state_dict())
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        a, b = one(data.clone()), two(data.clone())
    key = "loc" if "loc" in a else "action"
    assert torch.equal(a[key], b[key])


@each(POLICIES)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"action_high": [math.inf, 1.0]}, "finite"),
        ({"action_low": [2.0, 0.0]}, "low < high"),
        ({"action_low": [-1.0]}, r"\[a\]"),
        ({"action_low": [[-1.0, 0.0]], "action_high": [[1.0, 3.0]]}, "single one"),
        ({"hidden_sizes": (0,)}, "at least 1"),
        ({"observation_dim": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_named(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**({"observation_dim": 4, "action_low": [-1.0, 0.0], "action_high": [1.0, 3.0]} | kwargs))
