"""Q ensembles against one plain network per member on repeated states."""

import math

import pytest
import torch
from devices import DEVICES
from torch import nn

from safe_components.critics import QEnsemble, _cpu_scoring

# A rounding of float64 is 1e-16 of a number of order 1; three sums of at most 32 terms make 100 of them.
ROUNDING = {"rtol": 0, "atol": 1e-14}


def plain_values(critic, observation, action, activation=nn.ReLU):
    """The same function the plain way: an `nn.Sequential` on ``[s, a]`` per member, states repeated."""
    if action.ndim == observation.ndim + 1:
        observation = observation.unsqueeze(-2).expand(*action.shape[:-1], -1)
    if critic.action_low is not None:
        action = action.clamp(critic.action_low, critic.action_high)
    rows = torch.cat([observation, action], -1)
    values = []
    for e in range(critic.num_members):
        weights = [getattr(critic, f"weight_{i}")[e] for i in range(critic.num_layers)]
        layers = []
        for i, weight in enumerate(weights):
            linear = nn.Linear(*weight.shape, dtype=weight.dtype, device=weight.device)
            linear.weight.data = weight.T
            linear.bias.data = getattr(critic, f"bias_{i}")[e, 0]
            layers.append(linear)
            if critic.layer_norm:
                layers.append(nn.LayerNorm(weight.shape[1], elementwise_affine=False))
            layers.append(activation())
        values.append(nn.Sequential(*layers[: -2 if critic.layer_norm else -1])(rows))
    return torch.stack(values)


def draw(critic, *lead, particles=None, dtype=torch.float64, device="cpu"):
    shape = (*lead, critic.action_dim) if particles is None else (*lead, particles, critic.action_dim)
    observation = torch.randn(*lead, critic.obs_dim, dtype=dtype, device=device)
    return observation, torch.randn(shape, dtype=dtype, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.ELU])
@pytest.mark.parametrize("hidden_sizes", [(32,), (32, 16, 8)])
@pytest.mark.parametrize(
    ("lead", "particles"),
    [((9,), None), ((9,), 1), ((9,), 5), ((2, 3), None), ((2, 3), 4), ((), 6), ((130,), 64)],
)
def test_values_equal_plain_networks(lead, particles, hidden_sizes, activation, gradients, device):
    torch.manual_seed(0)
    critic = QEnsemble(5, 2, 3, 2, hidden_sizes, activation=activation).to(device, torch.float64)
    observation, action = draw(critic, *lead, particles=particles, device=device)
    with torch.set_grad_enabled(gradients):
        values = critic(observation, action)
    assert values.shape == (3, *lead, *(() if particles is None else (particles,)), 2)
    assert values.requires_grad == gradients
    expected = plain_values(critic, observation, action, activation)
    torch.testing.assert_close(values, expected, **ROUNDING)


def test_blocks_that_do_not_divide_the_batch_lose_no_row(monkeypatch):
    monkeypatch.setattr(
        _cpu_scoring, "_block_states", lambda states, per_state, *_: max(1, min(states, 64 // per_state))
    )
    torch.manual_seed(0)
    critic = QEnsemble(5, 2, 2, hidden_sizes=(8, 8)).double()
    for states, particles in ((11, 64), (1, 300), (5, 30), (201, 1), (9, 65)):
        observation, action = draw(critic, states, particles=particles)
        with torch.no_grad():
            values = critic(observation, action)
        torch.testing.assert_close(values, plain_values(critic, observation, action), **ROUNDING)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_float32_agrees_within_rounding(layer_norm):
    torch.manual_seed(0)
    critic = QEnsemble(5, 2, 2, layer_norm=layer_norm)
    observation, action = draw(critic, 40, particles=64, dtype=torch.float32)
    with torch.no_grad():
        values = critic(observation, action)
    # A rounding of float32 is 6e-8 of a number of order 1. The 256 roundings of a sum are random, so that
    # some 16 of them remain.
    torch.testing.assert_close(values, plain_values(critic, observation, action), rtol=0, atol=1e-6)


def test_layer_norm_of_particles_where_state_and_action_nearly_cancel():
    """The variance comes from a quadratic form, whose terms are then far larger than their sum."""
    torch.manual_seed(0)
    critic = QEnsemble(1, 1, 1, hidden_sizes=(16, 8), layer_norm=True)
    with torch.no_grad():
        critic.weight_0[:, 1] = -critic.weight_0[:, 0]
        critic.bias_0.mul_(1e-2)
        observation = torch.rand(2, 1) + 1.0
        action = observation.unsqueeze(1) + torch.linspace(-0.1, 0.1, 401).view(1, -1, 1)
        values = critic(observation, action)
    # The terms of order 1 sum to 1e-5 at least, to which their roundings of 6e-8 are 0.6 percent. The
    # deviation is wrong by half of that, and so are the values, which are of order 1 at most.
    torch.testing.assert_close(values, plain_values(critic, observation, action), rtol=0, atol=2e-3)


@pytest.mark.parametrize("particles", [4, 64])
@pytest.mark.parametrize("hidden_sizes", [(64,), (64, 48), (64, 48, 32)])
def test_scoring_in_bfloat16_changes_the_products_between_hidden_layers_alone(hidden_sizes, particles):
    torch.manual_seed(0)
    critic = QEnsemble(5, 2, 2, hidden_sizes=hidden_sizes, scoring_dtype=torch.bfloat16, layer_norm=True)
    observation, action = draw(critic, 40, particles=particles, dtype=torch.float32)
    exact = plain_values(critic, observation, action)
    with torch.no_grad():
        values = critic(observation, action)
    assert values.dtype == torch.float32
    error = (values - exact).square().mean().sqrt() / exact.std()
    # bfloat16 rounds by at most 2^-9 = 0.002, at random; the output averages the errors of many terms, but
    # these terms are larger than their sum.
    assert error < (1e-6 if len(hidden_sizes) == 1 else 0.01)
    assert len(hidden_sizes) == 1 or error > 1e-4  # it is another format
    # Gradients and single actions keep float32, whose roundings of 6e-8 the 64 terms of a sum repeat.
    torch.testing.assert_close(critic(observation, action), exact, rtol=0, atol=1e-6)
    with torch.no_grad():
        single = critic(observation, action[:, 0])
    torch.testing.assert_close(single, exact[:, :, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("particles", [None, 4])
def test_gradients_equal_those_of_plain_networks(particles):
    torch.manual_seed(0)
    critic = QEnsemble(5, 2, 3, 2, (16, 16), activation=nn.Tanh).double()
    observation, action = draw(critic, 6, particles=particles)
    observation.requires_grad_()
    action.requires_grad_()
    assert torch.autograd.gradcheck(critic, (observation, action))
    parameters = list(critic.parameters())
    got = torch.autograd.grad(critic(observation, action).square().sum(), parameters)

    def value(*tensors):
        named = dict(zip(dict(critic.named_parameters()), tensors, strict=True))
        return (
            torch.func.functional_call(critic, named, (observation.detach(), action.detach())).square().sum()
        )

    # Finite differences along one random direction, central: error of order 1e-8 relative.
    direction, step = [torch.randn_like(p) for p in parameters], 1e-5
    with torch.no_grad():
        ahead = value(*(p + step * d for p, d in zip(parameters, direction, strict=True)))
        behind = value(*(p - step * d for p, d in zip(parameters, direction, strict=True)))
    slope = sum((g * d).sum() for g, d in zip(got, direction, strict=True))
    torch.testing.assert_close((ahead - behind) / (2 * step), slope.detach(), rtol=1e-6, atol=1e-8)


def test_inside_the_bounds_the_gradient_reaches_every_action():
    torch.manual_seed(0)
    critic = QEnsemble(3, 2, 2, hidden_sizes=(16,), action_low=[-1.0, 0.0], action_high=[1.0, 2.0])
    within = torch.tensor([0.5, 1.0]).repeat(5, 1).requires_grad_()
    assert torch.autograd.grad(critic(torch.randn(5, 3), within).sum(), within)[0].all()


def test_initial_weights_are_those_of_linear_layers_drawn_apart_for_each_member():
    torch.manual_seed(0)
    critic = QEnsemble(30, 10, 8, hidden_sizes=(64, 64))
    fan_in = {"weight_0": 40, "bias_0": 40}
    for name, parameter in critic.named_parameters():
        bound = 1 / math.sqrt(fan_in.get(name, 64))
        assert parameter.abs().amax() <= bound
        # Uniform on [-b, b]: deviation b / sqrt(3), known to 1 / sqrt(n) over n >= 8 draws.
        tolerance = 4 / math.sqrt(parameter.numel())
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=tolerance)
        assert not torch.equal(parameter[0], parameter[1])


@pytest.mark.parametrize(
    ("observation", "action"),
    [((4, 3), (4, 3)), ((4, 2), (4, 2)), ((4, 3), (5, 2)), ((4, 3), (4, 6, 7, 2)), ((4, 3), (2,))],
)
def test_wrong_shapes_are_named(observation, action):
    with pytest.raises(ValueError, match=r"observation \[..., 3\] and action \[..., 2\]"):
        QEnsemble(3, 2, 2, hidden_sizes=(8,))(torch.zeros(observation), torch.zeros(action))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_members": 0}, "num_members=0"),
        ({"hidden_sizes": ()}, "hidden_sizes"),
        ({"hidden_sizes": (8, 0)}, r"hidden_sizes\[1\]=0"),
        ({"action_low": [0.0, 0.0]}, "both"),
        ({"action_low": [0.0, 0.0], "action_high": [1.0]}, r"both be \[a\]"),
        ({"action_low": [0.0], "action_high": [1.0]}, r"must be \[2\]"),
        ({"action_low": [0.0, 2.0], "action_high": [1.0, 1.0]}, "low < high"),
        ({"action_low": [0.0, 2.0], "action_high": [1.0, math.inf]}, "finite"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QEnsemble(**({"obs_dim": 3, "action_dim": 2, "num_members": 2} | kwargs))
