"""Laws of every loss: what TorchRL and PyTorch expect of one. A new loss joins with one line in `LOSSES`."""

import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from safe_components.critics import ConstrainedQEnsemble, CriticLearner, TDLoss
from safe_components.lagrangian import DeterministicLagLoss, FOCOPSLoss, SACLagLoss
from safe_components.mstep import HardTrustRegion, MStepLoss
from safe_components.policies import deterministic_policy, gaussian_policy, tanh_gaussian_policy

SIZES = {"hidden_sizes": (8,)}
BOUNDS = [-1.0, -1.0], [1.0, 1.0]


def critic():
    return ConstrainedQEnsemble(3, 2, num_reward_members=2, num_cost_members=1, **SIZES)


def td(**options):
    loss = TDLoss(critic(), deterministic_policy(3, *BOUNDS, **SIZES), **options)
    SoftUpdate(loss, tau=0.1)
    return loss


def mstep(likelihood="decoupled", **options):
    region = HardTrustRegion(0.01, 0.001)
    loss = MStepLoss(gaussian_policy(3, *BOUNDS, **SIZES), region, likelihood=likelihood, **options)
    SoftUpdate(loss, tau=0.1)
    return loss


def sac(**options):
    return SACLagLoss(tanh_gaussian_policy(3, *BOUNDS, **SIZES), critic(), lambda: torch.ones(1), **options)


def deterministic(**options):
    policy = deterministic_policy(3, *BOUNDS, **SIZES)
    loss = DeterministicLagLoss(policy, critic(), lambda: torch.ones(1), **options)
    SoftUpdate(loss, tau=0.1)
    return loss


def focops(**options):
    loss = FOCOPSLoss(gaussian_policy(3, *BOUNDS, **SIZES), max_kl=100.0, **options)
    SoftUpdate(loss, tau=0.1)
    return loss


LOSSES = {
    "td": td,
    "mstep": mstep,
    "mstep, joint": lambda **options: mstep("joint", **options),
    "sac": sac,
    "deterministic": deterministic,
    "focops": focops,
}


@pytest.fixture(params=LOSSES)
def make(request):
    def build(**options):
        torch.manual_seed(0)
        return LOSSES[request.param](**options)

    return build


def batch(states=6):
    torch.manual_seed(1)
    following = TensorDict(
        observation=torch.randn(states, 3),
        reward=torch.randn(states, 1),
        cost=torch.rand(states, 1),
        terminated=torch.rand(states, 1) < 0.3,
        batch_size=states,
    )
    weight = torch.randn(states, 8).softmax(-1)
    particles = TensorDict(action=torch.randn(states, 8, 2), weight=weight, batch_size=states)
    observation, action = torch.randn(states, 3), torch.randn(states, 2)
    return TensorDict(
        observation=observation,
        action=action,
        advantage=torch.randn(states, 1),
        next=following,
        particles=particles,
        batch_size=states,
    )


def losses_of(loss, data=None):
    """All entries to be minimized, with the same random numbers at every call."""
    torch.manual_seed(2)
    out = loss(batch() if data is None else data)
    return {name: out[name] for name in loss.out_keys if name.startswith("loss_") and out[name].requires_grad}


def trained(loss, steps=20):
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(steps):
        values = losses_of(loss)
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
    return [value.detach() for value in values.values()]


def test_a_deep_copy_trains_as_the_original_does_and_apart_from_it(make):
    loss = make()
    start = [parameter.detach().clone() for parameter in loss.parameters()]
    copies = [copy.deepcopy(loss), copy.deepcopy(copy.deepcopy(loss))]
    results = [trained(each) for each in copies]
    torch.testing.assert_close(list(loss.parameters()), start, rtol=0, atol=0)
    original = trained(loss)
    for result in results:
        torch.testing.assert_close(result, original, rtol=0, atol=0)
    assert not any(torch.equal(a, b) for a, b in zip(start, loss.parameters(), strict=True))


def test_an_optimizer_that_is_copied_along_moves_the_copy(make):
    loss = make()
    pair = {"optimizer": torch.optim.Adam(loss.parameters(), lr=1e-2), "loss": loss}
    for order in (pair, dict(reversed(pair.items()))):
        twin = copy.deepcopy(order)
        held = [id(p) for group in twin["optimizer"].param_groups for p in group["params"]]
        assert held == [id(p) for p in twin["loss"].parameters()]
        assert not set(held) & {id(p) for p in loss.parameters()}


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reductions_are_those_of_the_losses_of_single_states(make, reduction):
    mean, other = losses_of(make()), losses_of(make(reduction=reduction))
    for name, value in mean.items():
        if name == "loss_trust_region":  # the multipliers have no states
            torch.testing.assert_close(other[name], value)
        elif reduction == "sum":
            torch.testing.assert_close(other[name] / 6, value)
        else:
            assert other[name].shape == (6,)
            torch.testing.assert_close(other[name].mean(), value)


def test_the_gradient_of_single_losses_is_that_of_their_mean(make):
    mean, single = make(), make(reduction="none")
    sum(losses_of(mean).values()).backward()
    sum(value.mean() for value in losses_of(single).values()).backward()
    gradients = [[p.grad for p in loss.parameters()] for loss in (mean, single)]
    torch.testing.assert_close(*gradients)


def test_an_unknown_reduction_is_named(make):
    with pytest.raises(ValueError, match="reduction='median' is not one of mean, sum, none"):
        make(reduction="median")


def test_outputs_can_be_selected(make):
    loss, full = make(), losses_of(make())
    name = next(iter(full))
    every = list(loss.out_keys)
    assert loss.select_out_keys(name) is loss
    assert loss.out_keys == [name]
    assert list(losses_of(loss)) == [name]
    torch.testing.assert_close(losses_of(loss)[name], full[name])
    loss.reset_out_keys()
    assert loss.out_keys == every


def test_a_functional_call_computes_with_the_parameters_that_it_is_given(make):
    loss, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5).add_(0.01)
    parameters = {name: p.detach().clone() for name, p in other.named_parameters()}
    before, expected = losses_of(loss), losses_of(other)

    def call(parameters):
        torch.manual_seed(2)
        out = torch.func.functional_call(loss, parameters, (batch(),))
        return {name: out[name] for name in expected}

    torch.testing.assert_close(call(parameters), {n: v.detach() for n, v in expected.items()})
    torch.testing.assert_close(losses_of(loss), before)  # the module has its own again
    assert any((expected[name] != before[name]).any() for name in before)
    gradient = torch.func.grad(lambda given: sum(call(given).values()))(parameters)
    sum(expected.values()).backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)


def test_an_empty_batch_is_named(make):
    with pytest.raises(ValueError, match="holds no state"):
        make()(batch(0))


def test_tied_parameters_are_listed_once_or_twice_as_asked(make):
    loss = make()
    names = dict(loss.named_parameters())
    assert dict(loss.named_parameters(remove_duplicate=False)).keys() >= names.keys()
    assert not any("target" in name for name in names)


def test_a_deep_copy_of_a_learner_trains_as_the_original_does_and_apart_from_it():
    def run(learner):
        losses = []
        for _ in range(10):
            torch.manual_seed(3)
            losses.append(learner.update(batch())["loss_q_reward"])
        return torch.stack(losses), [p.clone() for p in learner.target_params.values(True, True)]

    torch.manual_seed(0)
    learner = CriticLearner(critic(), deterministic_policy(3, *BOUNDS, **SIZES), lr=1e-2, polyak=0.5)
    for _ in range(2):  # fresh, and with a moving optimizer
        twin = copy.deepcopy(learner)
        original, state = run(learner), [p.detach().clone() for p in learner.parameters()]
        assert len(original[0].unique()) == 10
        copied = run(twin)
        torch.testing.assert_close(copied, original, rtol=0, atol=0)
        torch.testing.assert_close(list(learner.parameters()), state, rtol=0, atol=0)


def test_a_learner_needs_one_loss_to_take_a_step_on():
    with pytest.raises(ValueError, match="reduction='none'"):
        CriticLearner(critic(), deterministic_policy(3, *BOUNDS, **SIZES), reduction="none")


@pytest.mark.filterwarnings("ignore")  # what the compiler warns of lies in PyTorch and TensorDict
def test_an_m_step_is_compiled_whole_from_a_plain_batch():
    torch.manual_seed(0)
    loss, data = mstep(), batch()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(dict(compiled(data)), dict(loss(data)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch maps clamp_ one by one
@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
def test_an_m_step_is_mapped_over_a_stack_of_batches_and_of_policies(likelihood):
    torch.manual_seed(0)
    loss = mstep(likelihood)
    data = [batch(), batch()]
    data[1]["particles", "action"] += 0.5
    parameters = {n: torch.stack([p.detach(), 1.1 * p.detach() + 0.01]) for n, p in loss.named_parameters()}
    stacked = torch.stack(data)

    def value(parameters, observation, action, weight):
        particles = TensorDict(action=action, weight=weight, batch_size=[6])
        given = TensorDict(observation=observation, particles=particles, batch_size=[6])
        return torch.func.functional_call(loss, parameters, (given,))["loss_policy"]

    entries = stacked["observation"], stacked["particles", "action"], stacked["particles", "weight"]
    mapped = torch.vmap(value)(parameters, *entries)
    gradients = torch.vmap(torch.func.grad(value))(parameters, *entries)
    for i, each in enumerate(data):
        own = copy.deepcopy(loss)
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter.copy_(parameters[name][i])
        expected = own(each)["loss_policy"]
        torch.testing.assert_close(mapped[i], expected)
        expected.backward()
        for name, parameter in own.named_parameters():
            if name.startswith("policy"):
                torch.testing.assert_close(gradients[name][i], parameter.grad, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_sum_to_1_are_refused_where_values_can_be_read():
    data = batch()
    data["particles", "weight"] *= 2
    with pytest.raises(ValueError, match="must sum to 1"):
        mstep()(data)
