"""Q ensembles against one plain network per member on repeated states."""

import math

import pytest
import torch
from torch import nn

from safe_components.critics import QEnsemble, q_ensemble

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


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
            layers += [linear, activation()]
            if i == 0 and critic.layer_norm:
                layers.insert(1, nn.LayerNorm(weight.shape[1], elementwise_affine=False))
        values.append(nn.Sequential(*layers[:-1])(rows))
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
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10, check_device=True)


def test_blocks_that_do_not_divide_the_batch_lose_no_row(monkeypatch):
    monkeypatch.setattr(
        q_ensemble, "_block_states", lambda states, per_state, *_: max(1, min(states, 64 // per_state))
    )
    torch.manual_seed(0)
    critic = QEnsemble(5, 2, 2, hidden_sizes=(8, 8)).double()
    for states, particles in ((11, 64), (1, 300), (5, 30), (201, 1), (9, 65)):
        observation, action = draw(critic, states, particles=particles)
        with torch.no_grad():
            values = critic(observation, action)
        torch.testing.assert_close(values, plain_values(critic, observation, action), rtol=1e-10, atol=1e-10)


def test_no_states_and_no_particles():
    critic = QEnsemble(5, 2, 3)
    with torch.no_grad():
        assert critic(torch.zeros(0, 5), torch.zeros(0, 4, 2)).shape == (3, 0, 4, 1)
        assert critic(torch.zeros(4, 5), torch.zeros(4, 0, 2)).shape == (3, 4, 0, 1)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_float32_agrees_within_rounding(layer_norm):
    torch.manual_seed(0)
    critic = QEnsemble(5, 2, 2, layer_norm=layer_norm)
    observation, action = draw(critic, 40, particles=64, dtype=torch.float32)
    with torch.no_grad():
        values = critic(observation, action)
    # Sums of 256 terms of order 0.1 in float32: errors of a few 1e-6.
    torch.testing.assert_close(values, plain_values(critic, observation, action), rtol=1e-5, atol=1e-5)


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
    # Terms of order 1 that sum to 1e-5 at the least leave three digits of the deviation.
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
    # Eight bits are wrong by 2^-9 at most, at random; each hidden product adds what its many terms average.
    assert error < (1e-5 if len(hidden_sizes) == 1 else 0.01)
    assert len(hidden_sizes) == 1 or error > 1e-4  # it is another format
    torch.testing.assert_close(critic(observation, action), exact, rtol=1e-5, atol=1e-5)  # with gradients
    with torch.no_grad():
        single = critic(observation, action[:, 0])
    torch.testing.assert_close(single, exact[:, :, 0], rtol=1e-5, atol=1e-5)


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


def test_beyond_the_bounds_values_are_constant_and_gradients_zero():
    torch.manual_seed(0)
    critic = QEnsemble(3, 2, 2, hidden_sizes=(16,), action_low=[-1.0, 0.0], action_high=[1.0, 2.0])
    observation = torch.randn(5, 3)
    inside = torch.tensor([1.0, 0.0]).expand(5, 2)
    outside = (inside + torch.tensor([3.0, -4.0])).requires_grad_()
    values = critic(observation, outside)
    torch.testing.assert_close(values, critic(observation, inside), rtol=0, atol=0)
    assert torch.autograd.grad(values.sum(), outside)[0].abs().amax() == 0.0
    within = torch.tensor([0.5, 1.0]).repeat(5, 1).requires_grad_()
    assert torch.autograd.grad(critic(observation, within).sum(), within)[0].abs().amin() > 0.0


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


def test_state_dict_round_trip():
    torch.manual_seed(0)
    one, two = (
        QEnsemble(3, 2, 2, hidden_sizes=(8,), action_low=[-1, -1], action_high=[h, h]) for h in (1, 2)
    )
    two.load_state_dict(one.state_dict())
    observation, action = draw(one, 4, dtype=torch.float32)
    torch.testing.assert_close(two(observation, 5 * action), one(observation, 5 * action), rtol=0, atol=0)


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
        ({"action_low": [0.0, 0.0], "action_high": [1.0]}, r"must be \[2\]"),
        ({"action_low": [0.0, 2.0], "action_high": [1.0, 1.0]}, "low < high"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QEnsemble(**({"obs_dim": 3, "action_dim": 2, "num_members": 2} | kwargs))
