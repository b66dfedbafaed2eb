"""The M-step's formula against torch.distributions, and its fast twins against the formula."""

import math
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from devices import DEVICES
from recorded_graph import graphs_on_the_cpu
from tensordict import TensorDict
from torch.distributions import MultivariateNormal, kl_divergence
from torchrl.objectives import SoftUpdate

from safe_components.mstep import (
    DecoupledTerms,
    HardTrustRegion,
    MStepLoss,
    _fused,
    decoupled_terms,
    log_likelihood,
    loss,
)
from safe_components.ops import triton
from safe_components.policies import gaussian_policy
from safe_components.training.graph import GraphedCall

DOUBLE = torch.float64
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = DEVICES[-1]  # on a CPU, Triton's interpreter runs the kernels


def rotated_tril(*lead, size, condition):
    """Cholesky factors of covariances with eigenvalues over ``condition`` in random directions."""
    rotation = torch.linalg.qr(torch.randn(*lead, size, size, dtype=DOUBLE)).Q
    eigenvalues = torch.logspace(0, -math.log10(condition), size, dtype=DOUBLE)
    return torch.linalg.cholesky(rotation * eigenvalues @ rotation.mT)


def problem(*lead, size, condition=1.0, particles=16, dtype=DOUBLE, device="cpu"):
    """An old Gaussian with weighted particles drawn from it, and a new Gaussian near it.

    Returns the arguments of `decoupled_terms`. The new Gaussian has moved by a fifth of the old standard
    deviation. The weights of a state sum to 1 on average only.
    """
    torch.manual_seed(size)
    loc_old, tril_old = (
        torch.randn(*lead, size, dtype=DOUBLE),
        rotated_tril(*lead, size=size, condition=condition),
    )
    noise = torch.randn(*lead, particles, size, dtype=DOUBLE)
    action = loc_old.unsqueeze(-2) + noise @ tril_old.mT
    weight = torch.rand(*lead, particles, dtype=DOUBLE) * 2 / particles
    loc = loc_old + 0.2 * (tril_old @ torch.randn(*lead, size, 1, dtype=DOUBLE)).squeeze(-1)
    change = torch.eye(size, dtype=DOUBLE) + 0.2 * torch.randn(*lead, size, size, dtype=DOUBLE).tril()
    return [x.to(device, dtype) for x in (loc_old, tril_old, action, weight, loc, tril_old @ change)]


def fused_terms(loc_old, tril_old, action, weight, loc, tril, twin=_fused.decoupled_terms):
    """All terms of a fast twin, the joint likelihood last."""
    constants = _fused.OldPolicy.of(loc_old, tril_old, action, weight, _fused.combination(loc))
    terms = twin(constants, loc, tril)
    return *terms, _fused.joint_log_likelihood(constants, terms.fit_cov, loc, tril)


def kernel_terms(constants, loc, tril):
    """The twin that is one Triton kernel."""
    from safe_components.mstep import _fused_triton  # where Triton is installed

    return _fused_triton.decoupled_terms(constants, loc, tril)


def plain_terms(loc_old, tril_old, action, weight, loc, tril):
    terms = decoupled_terms(loc_old, tril_old, action, weight, loc, tril)
    return *terms, log_likelihood(action, weight, loc, tril)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("condition", [1.0, 1e8])
@pytest.mark.parametrize("size", [1, 2, 6, 12])
def test_the_formula_equals_torch_distributions(size, condition, device):
    arguments = loc_old, tril_old, action, weight, loc, tril = problem(
        5, size=size, condition=condition, device=device
    )
    old = MultivariateNormal(loc_old, scale_tril=tril_old)
    mean = MultivariateNormal(loc, scale_tril=tril_old)
    cov = MultivariateNormal(loc_old, scale_tril=tril)
    new = MultivariateNormal(loc, scale_tril=tril)

    def fit(dist):
        return (weight * dist.log_prob(action.movedim(1, 0)).movedim(0, 1)).sum(1).mean()

    expected = [fit(mean), fit(cov), kl_divergence(old, mean).mean(), kl_divergence(old, cov).mean()]
    expected += [new.entropy().mean(), fit(new)]
    torch.testing.assert_close(plain_terms(*arguments), tuple(expected), rtol=1e-8, atol=1e-8)


def condition_number(tril):
    """Skeel's ``‖ |L⁻¹| |L| ‖_∞``: rounding in triangular solves and inverses is a few ``eps`` times this."""
    tril = tril.double()
    return float((torch.linalg.inv(tril).abs() @ tril.abs()).sum(-1).amax())


def assert_law(twin, size, condition, dtype, device):
    """Values and gradients of every term, against the formula in float64."""
    arguments = problem(2, 3, size=size, condition=condition, dtype=dtype, device=device)
    exact = [x.double() for x in arguments]
    variables, exact_variables = arguments[4:], exact[4:]
    for x in (*variables, *exact_variables):
        x.requires_grad_()
    bound = 4 * torch.finfo(dtype).eps * condition_number(arguments[1])
    names = [*DecoupledTerms._fields, "joint"]
    for name, ours, expected in zip(names, fused_terms(*arguments, twin), plain_terms(*exact), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), expected, rtol=bound, atol=bound, msg=name)
        assert ours.requires_grad == (name != "entropy")
        if name == "entropy":
            continue
        options = {"retain_graph": True, "materialize_grads": True}
        ours = torch.autograd.grad(ours, variables, **options)
        expected = torch.autograd.grad(expected, exact_variables, **options)
        # A gradient is of order one in the coordinates in which the old policy is N(0, I).
        to_white = exact[1].mT
        loc, tril = zip(ours, expected, strict=True)
        loc = [(to_white @ g.double().unsqueeze(-1)) for g in loc]
        tril = [(to_white @ g.double()).tril() for g in tril]
        torch.testing.assert_close(*loc, rtol=bound, atol=bound, msg=f"gradient of {name} to loc")
        torch.testing.assert_close(*tril, rtol=bound, atol=bound, msg=f"gradient of {name} to scale_tril")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_law_the_fast_twin_equals_the_formula(size, condition, dtype, device):
    assert_law(_fused.decoupled_terms, size, condition, dtype, device)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(
    ("size", "condition"), [(1, 1.0), (2, 1e3), (3, 1e6), pytest.param(17, 1e3, marks=pytest.mark.slow)]
)
def test_law_the_kernel_equals_the_formula(size, condition, dtype):
    assert_law(kernel_terms, size, condition, dtype, DEVICE)


def value_and_gradient(twin, constants, loc, tril):
    loc, tril = loc.detach().requires_grad_(), tril.detach().requires_grad_()
    terms = twin(constants, loc, tril)
    weighted = sum(g * term for g, term in zip([0.3, -0.7, 2.0, 1.1], terms, strict=False))
    return (*(term.detach() for term in terms), *torch.autograd.grad(weighted.sum(), [loc, tril]))


@needs_triton
@pytest.mark.parametrize("lead", [(1,), (70,), (2, 3, 4)])  # 70: two programs of both kernels
def test_a_kernel_takes_any_number_of_states(lead):
    *old, loc, tril = problem(*lead, size=2, device=DEVICE)
    constants = _fused.OldPolicy.of(*old, _fused.combination(loc))
    expected = value_and_gradient(_fused.decoupled_terms, constants, loc, tril)
    torch.testing.assert_close(value_and_gradient(kernel_terms, constants, loc, tril), expected)
    # Entries above the diagonal and strides are nobody's business.
    spread = torch.empty(*lead, 2, 2, 2, dtype=DOUBLE, device=DEVICE)[..., 0].copy_(tril)
    spread[..., 0, 1] = torch.nan
    torch.testing.assert_close(value_and_gradient(kernel_terms, constants, loc, spread), expected)


@needs_triton
def test_a_kernel_serves_all_members_that_vmap_maps_over():
    loc_old, tril_old, action, weight, loc, tril = problem(3, 5, size=2, device=DEVICE)
    old = loc_old, tril_old, action, weight[:1].expand_as(weight)
    constants = _fused.OldPolicy.of(*old, _fused.combination(loc))

    def mapped(constants, loc, tril):
        def one(loc, tril, loc_old, tril_old, first, second):  # the total weights are the same for all
            changed = {"scale_tril": tril_old, "total": constants.total[0], "first": first, "second": second}
            return kernel_terms(constants._replace(loc=loc_old, **changed), loc, tril)

        others = constants.loc, constants.scale_tril, constants.first, constants.second
        return torch.vmap(one, in_dims=(0, 1, *[0] * 4))(loc, tril.movedim(0, 1), *others)

    *terms, loc_grad, tril_grad = value_and_gradient(mapped, constants, loc, tril)
    for i in range(3):
        own = _fused.OldPolicy.of(*(x[i] for x in old), constants.combination)
        expected = value_and_gradient(_fused.decoupled_terms, own, loc[i], tril[i])
        torch.testing.assert_close((*(term[i] for term in terms), loc_grad[i], tril_grad[i]), expected)


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value encountered in log")  # of the interpreter's NumPy
def test_a_kernel_hides_no_value_that_is_not_finite():
    *old, loc, tril = problem(5, size=3, device=DEVICE)
    constants = _fused.OldPolicy.of(*old, _fused.combination(loc))
    loc[3, 1] = torch.nan
    tril[2, 1, 1] = -1.0
    *terms, loc_grad, tril_grad = value_and_gradient(kernel_terms, constants, loc, tril)
    assert all(term.isnan() for term in terms)
    assert loc_grad.isnan().any(-1).tolist() == [False, False, False, True, False]
    assert tril_grad.isfinite().all()  # that of the logarithm needs no logarithm


@needs_triton
def test_the_kernels_are_operators_of_pytorch():
    from safe_components.mstep import _fused_triton

    *old, loc, tril = (x.unsqueeze(0) for x in problem(3, size=2, device=DEVICE))
    constants = _fused.OldPolicy.of(*old, _fused.combination(loc))
    moments = constants.first, constants.second, constants.total
    arguments = loc, tril, constants.loc, constants.scale_tril, *moments
    parts = _fused_triton._terms(*arguments)[1:]
    for operator, its in (
        (_fused_triton._terms, arguments),
        (_fused_triton._gradient, (*parts, *torch.ones(4, 1, dtype=DOUBLE, device=DEVICE))),
    ):
        torch.library.opcheck(operator, its, test_utils=("test_schema", "test_faketensor"))


@needs_triton
@pytest.mark.parametrize("likelihood", ["decoupled", "joint"])
def test_a_loss_with_the_kernel_is_recorded_and_repeated(likelihood, monkeypatch):
    """Three steps as a graph are those of the ordinary loop, and close to those of the tensor version."""
    _, _, action, weight, *_ = problem(4, size=2, dtype=torch.float32, device=DEVICE)
    weight = weight / weight.sum(-1, keepdim=True)
    monkeypatch.setattr(loss, "is_fusible", lambda loc: True)

    def train(fused, run=lambda step: step):
        torch.manual_seed(0)
        policy = gaussian_policy(3, [-1.0] * 2, [1.0] * 2, hidden_sizes=(4,)).to(DEVICE)
        mstep = MStepLoss(
            policy, HardTrustRegion(0.01, 0.001), likelihood=likelihood, check_weights=False, fused=fused
        ).to(DEVICE)
        SoftUpdate(mstep, tau=0.5)
        optim = torch.optim.SGD(mstep.parameters(), lr=0.1)

        def step(observation):
            particles = {"action": action, "weight": weight}
            out = mstep(
                TensorDict(observation=observation, particles=TensorDict(particles, [4]), batch_size=[4])
            )
            optim.zero_grad()
            (out["loss_policy"] + out["loss_trust_region"]).backward()
            optim.step()
            return torch.stack([value.detach().float() for value in out.values()])

        step = run(step)
        rows = [step(torch.randn(4, 3, device=DEVICE)) for _ in range(3)]
        return torch.stack(rows), *(p.detach().clone() for p in mstep.parameters())

    eager = train(True)
    with graphs_on_the_cpu() if DEVICE == "cpu" else nullcontext():
        tolerance = {"rtol": 0.0, "atol": 0.0} if DEVICE == "cpu" else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(train(True, GraphedCall), eager, **tolerance)
    torch.testing.assert_close(train(False), eager, rtol=1e-4, atol=1e-5)


def test_without_triton_or_cuda_the_tensor_version_is_used(monkeypatch):
    for installed in (False, True):
        monkeypatch.setattr(triton, "_INSTALLED", installed)
        assert not _fused.is_fusible(torch.empty(3, 2))
        assert _fused.is_fusible(torch.empty(3, 2, device=DEVICE)) == (installed and DEVICE == "cuda")


def test_the_written_out_gradient_equals_finite_differences():
    *old, loc, tril = problem(3, 2, size=3, particles=5)

    def weighted(loc, tril):
        *terms, _, joint = fused_terms(*old, loc, tril.tril())
        return sum(g * term for g, term in zip([0.3, -0.7, 2.0, 1.1, 0.4], [*terms, joint], strict=True))

    assert torch.autograd.gradcheck(weighted, (loc.requires_grad_(), tril.requires_grad_()), atol=1e-7)


def test_outputs_of_the_written_out_function_all_carry_gradients():
    """`torch.compile` of PyTorch 2.11 refuses a custom function with an output that needs none."""
    *old, loc, tril = problem(3, size=2)
    constants = _fused.OldPolicy.of(*old, _fused.combination(loc))
    outputs = _fused._Decoupled.apply(loc.requires_grad_(), tril.requires_grad_(), constants)
    assert all(x.requires_grad for x in outputs)
