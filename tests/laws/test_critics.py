"""Laws that hold for every critic: a module ``(observation, action) -> values``, one tensor per signal."""

import copy

import pytest
import torch
from devices import DEVICES
from torch import nn

from safe_components.critics import ConstrainedQEnsemble, CriticPair, QEnsemble

OBS, ACT = 4, 2
OPTIONS = {"hidden_sizes": (16, 8), "action_low": [-1.0, -2.0], "action_high": [1.0, 0.5]}

# How to make each critic with given options of `QEnsemble`, and (members, outputs) of each of its signals.
CRITICS = {
    "QEnsemble": (lambda **options: QEnsemble(OBS, ACT, 3, 2, **options), [(3, 2)]),
    "ConstrainedQEnsemble": (
        lambda **options: ConstrainedQEnsemble(OBS, ACT, 2, 3, **options),
        [(2, 1), (3, 1)],
    ),
    "ConstrainedQEnsemble of 3 costs": (
        lambda **options: ConstrainedQEnsemble(OBS, ACT, 2, 1, 3, **options),
        [(2, 1), (1, 3)],
    ),
    "ConstrainedQEnsemble without costs": (
        lambda **options: ConstrainedQEnsemble(OBS, ACT, 2, 1, 0, **options),
        [(2, 1), (1, 0)],
    ),
    "CriticPair": (
        lambda **options: CriticPair(
            QEnsemble(OBS, ACT, 2, **options), QEnsemble(OBS, ACT, 1, 3, **{**options, "hidden_sizes": (5,)})
        ),
        [(2, 1), (1, 3)],
    ),
}
every_critic = pytest.mark.parametrize("name", CRITICS)
every_device = pytest.mark.parametrize("device", DEVICES)
with_and_without_gradient = pytest.mark.parametrize("gradient", [True, False])
# A rounding of float64 is 1e-16 of a number of order 1; three sums of at most 16 terms make 48 of them.
ROUNDING = {"rtol": 0, "atol": 1e-14}


def make(name, device="cpu", **options):
    torch.manual_seed(0)
    return CRITICS[name][0](**{**OPTIONS, **options}).to(device, torch.float64)


def draw(*lead, particles=None, device="cpu", dtype=torch.float64):
    shape = lead if particles is None else (*lead, particles)
    observation, action = torch.randn(*lead, OBS, dtype=dtype), 2 * torch.randn(*shape, ACT, dtype=dtype)
    return observation.to(device), action.to(device)


def values_of(critic, observation, action):
    values = critic(observation, action)
    return (values,) if isinstance(values, torch.Tensor) else values


@every_critic
@every_device
@with_and_without_gradient
@pytest.mark.parametrize("particles", [None, 0, 1, 5])
@pytest.mark.parametrize("lead", [(), (0,), (1,), (7,), (2, 3)])
def test_shapes(name, device, gradient, lead, particles):
    critic = make(name, device)
    observation, action = draw(*lead, particles=particles, device=device)
    with torch.set_grad_enabled(gradient):
        values = values_of(critic, observation, action)
    per_state = () if particles is None else (particles,)
    assert [tuple(value.shape) for value in values] == [
        (members, *lead, *per_state, outputs) for members, outputs in CRITICS[name][1]
    ]
    assert {(value.dtype, value.device.type) for value in values} == {(torch.float64, device)}


@every_critic
@every_device
@with_and_without_gradient
@pytest.mark.parametrize("layer_norm", [False, True])
def test_many_actions_are_scored_as_each_alone(name, device, gradient, layer_norm):
    critic = make(name, device, layer_norm=layer_norm)
    observation, action = draw(7, particles=5, device=device)
    with torch.set_grad_enabled(gradient):
        together = values_of(critic, observation, action)
        alone = [values_of(critic, observation, one) for one in action.unbind(1)]
    for signal, value in enumerate(together):
        expected = torch.stack([values[signal] for values in alone], 2)
        torch.testing.assert_close(value, expected, **ROUNDING)


@every_critic
@every_device
@pytest.mark.parametrize("particles", [None, 5])
def test_gradients_reach_every_parameter_and_the_actions(name, device, particles):
    critic = make(name, device)
    observation, action = draw(20, particles=particles, device=device)
    action = (action / 10).requires_grad_()  # mostly inside the bounds
    sum(value.square().sum() for value in values_of(critic, observation, action)).backward()
    assert all(parameter.grad.any() for parameter in critic.parameters())
    assert action.grad.flatten(0, -2).any(0).all()


@every_critic
@every_device
@pytest.mark.parametrize("particles", [None, 5])
def test_beyond_the_bounds_values_are_constant_and_gradients_zero(name, device, particles):
    critic = make(name, device)
    observation, action = draw(6, particles=particles, device=device)
    bound = torch.tensor([1.0, -2.0], dtype=torch.float64, device=device).expand_as(action)
    beyond = (bound + torch.tensor([3.0, -4.0], device=device)).requires_grad_()
    values = values_of(critic, observation, beyond)
    assert all(map(torch.equal, values, values_of(critic, observation, bound)))
    assert not torch.autograd.grad(sum(value.sum() for value in values), beyond)[0].any()


@every_critic
@every_device
def test_members_share_no_parameter(name, device):
    critic = make(name, device)
    values = values_of(critic, *draw(9, device=device))
    parameters = list(critic.parameters())
    used = [
        [
            torch.zeros_like(parameter) if gradient is None else gradient != 0
            for parameter, gradient in zip(
                parameters,
                torch.autograd.grad(member.sum(), parameters, retain_graph=True, allow_unused=True),
                strict=True,
            )
        ]
        for value in values
        for member in value
        if member.numel()
    ]
    for flags in zip(*used, strict=True):
        assert torch.stack([flag.to(torch.int) for flag in flags]).sum(0).amax() == 1


@every_critic
@every_device
def test_a_deep_copy_trains_on_its_own(name, device):
    critic = make(name, device)
    twin = copy.deepcopy(critic)
    observation, action = draw(9, device=device)
    before = values_of(critic, observation, action)
    assert all(map(torch.equal, before, values_of(twin, observation, action)))
    sum(value.sum() for value in values_of(twin, observation, action)).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert all(map(torch.equal, before, values_of(critic, observation, action)))
    assert all(parameter.grad is None for parameter in critic.parameters())
    moved = [
        (new != old).any() for new, old in zip(values_of(twin, observation, action), before, strict=True)
    ]
    assert all(moved[: 1 if before[-1].numel() == 0 else None])


@every_critic
@every_device
@pytest.mark.parametrize("particles", [None, 5])
def test_double_precision_gives_the_same_values_more_precisely(name, device, particles):
    critic = make(name, device).to(torch.float32)
    observation, action = draw(9, particles=particles, device=device, dtype=torch.float32)
    with torch.no_grad():
        single = values_of(critic, observation, action)
        double = values_of(critic.to(torch.float64), observation.double(), action.double())
    for rough, fine in zip(single, double, strict=True):
        assert (rough.dtype, fine.dtype) == (torch.float32, torch.float64)
        # One rounding of float32 is 6e-8, and sums of at most 16 terms of order 1 add up to 16 of them.
        torch.testing.assert_close(rough.double(), fine, rtol=0, atol=1e-6)


@every_critic
def test_a_state_dict_restores_the_values(name):
    critic, other = make(name), make(name, action_high=[2.0, 2.0])
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(critic.state_dict())
    batch = draw(9)
    assert all(map(torch.equal, values_of(other, *batch), values_of(critic, *batch)))


@every_device
@with_and_without_gradient
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("particles", [None, 5])
@pytest.mark.parametrize("costs", [0, 1, 3])
def test_the_fused_critic_is_a_pair_of_ensembles(costs, particles, layer_norm, gradient, device):
    torch.manual_seed(0)
    fused = ConstrainedQEnsemble(OBS, ACT, 2, 3, costs, layer_norm=layer_norm, **OPTIONS)
    pair = CriticPair(
        QEnsemble(OBS, ACT, 2, layer_norm=layer_norm, **OPTIONS),
        QEnsemble(OBS, ACT, 3, max(costs, 1), layer_norm=layer_norm, **OPTIONS),
    )
    for part, members in ((pair.reward, slice(0, 2)), (pair.cost, slice(2, 5))):
        for key, value in part.named_parameters():
            whole = fused.ensemble.get_parameter(key)[members]
            if len(whole):
                value.data = whole[..., : value.shape[-1]].detach().clone()
    batch = draw(9, particles=particles, device=device)
    with torch.set_grad_enabled(gradient):
        q_reward, q_cost = fused.to(device, torch.float64)(*batch)
        expected_reward, expected_cost = pair.to(device, torch.float64)(*batch)
    torch.testing.assert_close(q_reward, expected_reward, **ROUNDING)
    torch.testing.assert_close(q_cost, expected_cost[..., :costs], **ROUNDING)


def formula_and_kernel(critic, observation, action):
    """What the CPU kernel must compute, and what it does; both without gradient."""
    with torch.no_grad():
        return critic._formula(observation, action).view(-1, *action.shape[:2], critic.num_outputs), critic(
            observation, action
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.PReLU])
@pytest.mark.parametrize("hidden_sizes", [(24,), (24, 16), (24, 16, 8)])
@pytest.mark.parametrize(("states", "particles"), [(1, 1), (9, 1), (1, 300), (130, 64)])
def test_the_cpu_kernel_computes_the_formula(states, particles, hidden_sizes, activation, layer_norm, dtype):
    torch.manual_seed(0)
    options = {"hidden_sizes": hidden_sizes, "activation": activation, "layer_norm": layer_norm}
    critic = QEnsemble(OBS, ACT, 3, 2, **options).to(dtype)
    formula, kernel = formula_and_kernel(critic, *draw(states, particles=particles, dtype=dtype))
    # The values are of order 1, and a sum of at most 24 terms rounds 24 times.
    torch.testing.assert_close(kernel, formula, rtol=0, atol=24 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden_sizes", [(64,), (64, 48), (64, 48, 32)])
def test_the_cpu_kernel_computes_the_formula_in_bfloat16(hidden_sizes, layer_norm, activation):
    torch.manual_seed(0)
    options = {"hidden_sizes": hidden_sizes, "activation": activation, "layer_norm": layer_norm}
    critic = QEnsemble(OBS, ACT, 3, 2, scoring_dtype=torch.bfloat16, **options)
    formula, kernel = formula_and_kernel(critic, *draw(40, particles=64, dtype=torch.float32))
    error = (kernel - formula).square().mean().sqrt() / formula.std()
    # bfloat16 rounds by at most 2^-9 = 0.002, and the folded biases let the kernel round other numbers than
    # the formula. The output averages these errors, but it sums terms that are larger than itself.
    # A single hidden layer has no product in bfloat16.
    assert error < (1e-6 if len(hidden_sizes) == 1 else 0.005)
