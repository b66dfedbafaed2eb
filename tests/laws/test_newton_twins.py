"""``_newton_host.py`` and ``_newton_triton.py`` are fast twins of ``newton.py``: the same steps."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from safe_components.estep import NewtonDualSolver, _newton_host, kkt_residual, newton
from safe_components.ops import triton


def random_points(m, count=300):
    """Points on and off their bounds, with gradients of either sign and Hessians down to singular ones."""
    generator = torch.Generator().manual_seed(m)

    def random(*shape):
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    lower = torch.cat([torch.full((1,), 1e-6), torch.zeros(m)]).double()
    upper = torch.cat([torch.full((1,), torch.inf), torch.full((m,), 2.0)]).double()
    point = random(1 + m).exp().clamp(lower, upper)
    at_lower, at_upper = random(1 + m) > 1.0, random(1 + m) > 1.0
    at_upper[:, 0] = False
    point = torch.where(at_lower, lower, torch.where(at_upper, upper, point))
    rank = torch.randint(0, 2 + m, (count,), generator=generator)
    root = random(1 + m, 1 + m) * (torch.arange(1 + m) < rank[:, None])[:, None]
    hessian = root @ root.mT * (3 * random(1, 1)).exp()
    gradient = random(1 + m) * (3 * random(1)).exp()
    return point, gradient, hessian, lower.expand_as(point), upper.expand_as(point), (random() - 1).exp()


@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_steps_and_residuals_are_the_same(m):
    point, gradient, hessian, lower, upper, radius = random_points(m)
    eye = torch.eye(1 + m, dtype=torch.float64)
    epsilon = torch.full_like(radius, 0.1)
    step, size = newton._newton_step(point, gradient, hessian, lower, upper, radius, eye)
    residual = kkt_residual(gradient, point, lower, upper, epsilon)
    for i in range(len(point)):
        at, slope, low, high = (x[i].tolist() for x in (point, gradient, lower, upper))
        one, length = _newton_host._newton_step(at, slope, hessian[i].tolist(), low, high, float(radius[i]))
        # The same operations in the same order, but for the elimination's sums.
        torch.testing.assert_close(step.new_tensor(one), step[i], rtol=1e-9, atol=1e-12)
        assert length == pytest.approx(float(size[i]), rel=1e-9)
        assert _newton_host._residual(slope, at, low, high, 0.1) == float(residual[i])


def problems():
    """Limits that can be met and that cannot, and bad starts: a name, the arguments, the start."""
    for m in range(4):
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            q_reward = 2 * torch.randn(30, 8, generator=generator, dtype=torch.float64)
            q_cost = 2 + torch.randn(30, 8, m, generator=generator, dtype=torch.float64)
            q_cost = q_cost + 0.3 * q_reward.unsqueeze(-1)
            log_prior = torch.randn(30, 8, generator=generator, dtype=torch.float64) if seed % 2 else None
            for level in (1.9, 1.2, 0.1):
                limits = torch.full((m,), level, dtype=torch.float64)
                yield f"{m} {seed} {level}", (q_reward, q_cost, 0.1, limits, log_prior), None
            for eta, lam in ((0.1, 0.0), (0.1, 10.0), (1e3, 30.0)):
                init = (torch.tensor(eta).double(), torch.full((m,), lam).double())
                yield f"{m} {seed} from {eta} {lam}", (q_reward, q_cost, 0.1, limits + 1.8, log_prior), init


@pytest.mark.parametrize(
    ("settings", "infeasible"),
    [({}, "recover"), ({"lam_max": 0.5}, "clip"), ({"max_iterations": 3}, "recover")],
)
def test_a_single_problem_is_a_batch_of_one(settings, infeasible):
    """All fields agree, and the evaluations: so the trust radius moves alike."""
    solve = NewtonDualSolver(**settings)
    for name, (q_reward, q_cost, epsilon, limits, log_prior), init in problems():
        one = solve(q_reward, q_cost, epsilon, limits, log_prior, infeasible=infeasible, init=init)
        lead = [None if x is None else x.unsqueeze(0) for x in (q_reward, q_cost, limits, log_prior)]
        start = None if init is None else tuple(x.unsqueeze(0) for x in init)
        many = solve(*lead[:2], epsilon, *lead[2:], infeasible=infeasible, init=start)
        for field, value in vars(one).items():
            other = vars(many)[field].squeeze(0)
            if field == "residual":  # differences of numbers near 1
                assert float((value - other).abs()) <= 1e-9 + 1e-6 * float(value), name
            else:
                torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: n + m)


def test_the_radius_recovers_after_a_bad_start():
    counts = []
    for _, arguments, init in problems():
        if init is not None:
            solution = NewtonDualSolver()(*arguments, init=init)
            assert bool(solution.converged)
            counts.append(int(solution.iterations))
    # 12.1 evaluations; 12.9 with a radius that stays small after an accepted step, 29 with one that grows
    # past the full box.
    assert sum(counts) / len(counts) <= 12.5


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU, Triton's interpreter runs the kernel


class OneKernel(NewtonDualSolver):
    """The solver with its kernel on every device, and for every size."""

    def minimize(self, problem, start):
        from safe_components.estep._newton_triton import minimize_all  # where Triton is installed

        return minimize_all(problem, start, self.tol, self.fixed_iterations)


class Problem(NamedTuple):
    """Random estimates with the mean 2 of every cost, and how to solve them."""

    m: int
    level: float
    states: int = 12
    particles: int = 8
    prior: bool = False
    infeasible: str = "recover"
    init: tuple | None = None
    evaluations: int = 20
    epsilon: float = 0.1
    lam_max: float | None = None

    def solve(self, solver, change=lambda x: x):
        """Solve it; ``change`` is applied to the rewards."""
        generator = torch.Generator().manual_seed(self.m + self.states)

        def random(*shape):
            return torch.randn(self.states, self.particles, *shape, generator=generator).to(DEVICE)

        q_reward = 2 * random()
        q_cost = 2 + random(self.m) + 0.3 * q_reward.unsqueeze(-1)
        log_prior = random() if self.prior else None
        if self.prior:
            log_prior[0, 0] = -torch.inf
        epsilon, limits, *init = (
            torch.tensor(x, dtype=torch.float64, device=DEVICE)
            for x in (self.epsilon, [self.level] * self.m, *(self.init or ()))
        )
        solve = solver(fixed_iterations=self.evaluations, lam_max=self.lam_max)
        how = {"infeasible": self.infeasible, "init": tuple(init) or None}
        return solve(change(q_reward), q_cost, epsilon, limits, log_prior, **how)


KERNEL = {
    "without a cost": Problem(0, 0.0),
    "a limit that binds": Problem(1, 1.9),
    "a slack limit": Problem(1, 2.5, states=7, particles=5),  # no power of two
    "one state": Problem(1, 1.9, states=1),
    "several rounds of the loop": Problem(1, 1.9, states=70, particles=17),
    "a prior that excludes an action": Problem(1, 1.9, prior=True),
    "out of reach": Problem(1, 0.1),
    "out of reach, clipped": Problem(1, 1.0, infeasible="clip", lam_max=0.5),
    "two costs": Problem(2, 1.9, evaluations=8),
    "two costs, out of reach": Problem(2, 1.0, prior=True),
    "four costs": Problem(4, 1.9, evaluations=4),
    "a warm start": Problem(1, 1.9, init=(2.0, [0.5])),
    "a bad start, steps refused": Problem(1, 1.8, init=(1e3, [30.0])),
    "starts without values": Problem(1, 1.9, init=(float("nan"), [float("nan")])),
    "too few evaluations": Problem(1, 1.9, evaluations=2),
    "a ball wider than the simplex": Problem(1, 1.9, epsilon=10.0),
}


@needs_triton
@pytest.mark.parametrize("name", KERNEL)
def test_a_kernel_gives_the_same_answer(name):
    expected, found = KERNEL[name].solve(NewtonDualSolver), KERNEL[name].solve(OneKernel)
    for field, value in vars(expected).items():
        if field == "residual":  # differences of numbers near 1
            torch.testing.assert_close(found.residual, value, rtol=1e-6, atol=1e-9)
        elif field == "iterations":  # rounding may decide about the last one of both problems
            assert abs(int(found.iterations) - int(value)) <= (2 if DEVICE == "cuda" else 0)
        else:
            torch.testing.assert_close(getattr(found, field), value, rtol=1e-6, atol=1e-9)


@needs_triton
def test_a_kernel_keeps_leading_dimensions():
    """Two problems of three rows each, in one launch, with limits of their own."""
    generator = torch.Generator().manual_seed(0)
    q_reward = torch.randn(2, 3, 4, generator=generator).to(DEVICE)
    q_cost = torch.randn(2, 3, 4, 1, generator=generator).to(DEVICE)
    limits = torch.tensor([[0.3], [-3.0]], dtype=torch.float64, device=DEVICE)
    epsilon = torch.tensor([0.1, 0.3], dtype=torch.float64, device=DEVICE)
    log_prior = torch.randn(2, 3, 4, generator=generator).to(DEVICE)
    expected = NewtonDualSolver(fixed_iterations=15)(q_reward, q_cost, epsilon, limits, log_prior)
    found = OneKernel(fixed_iterations=15)(q_reward, q_cost, epsilon, limits, log_prior)
    assert expected.recovered.tolist() == found.recovered.tolist() == [False, True]
    for field in ("weight", "eta", "lam", "kl", "expected_cost"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-6, atol=1e-9)


@needs_triton
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter's NumPy
def test_a_kernel_does_not_hide_values_that_are_not_finite():
    def break_one(q_reward):
        return q_reward.index_fill(0, torch.tensor([3], device=DEVICE), torch.nan)

    problem = Problem(1, 1.9, evaluations=2)
    for solver in (NewtonDualSolver, OneKernel):
        solution = problem.solve(solver, break_one)
        assert bool(solution.residual.isnan())
        assert bool(solution.weight.isnan().any())
        assert not bool(solution.converged)


@needs_triton
def test_the_kernel_is_an_operator_of_pytorch():
    from safe_components.estep import _newton_triton

    def double(*values):
        return torch.tensor(values, dtype=torch.float64, device=DEVICE)

    features = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).double().to(DEVICE)
    lower, upper, start = double([1e-6, 0.0]), double([torch.inf, 1e6]), double([1.0, 0.0])
    arguments = (features, None, double(0.1), double([0.0]), lower, upper, double(-torch.inf), start, 1e-9, 1)
    torch.library.opcheck(_newton_triton._minimize, arguments, test_utils=("test_schema", "test_faketensor"))


@needs_triton
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """The interpreter runs Python that the compiler refuses, so both are needed; the M-step's, too."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert all(int(size) > 0 for size in run.stdout.split())


@pytest.mark.parametrize("installed", [False, True])
def test_without_triton_or_cuda_the_tensor_version_is_used(installed, monkeypatch):
    monkeypatch.setattr(triton, "_INSTALLED", installed)
    q_reward, q_cost = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    problem = q_reward, q_cost, torch.tensor(0.1).double(), torch.zeros(1).double()
    expected = NewtonDualSolver(fixed_iterations=10, fused=False)(*problem)
    found = NewtonDualSolver(fixed_iterations=10, fused=True)(*problem)
    for field, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, field), value, rtol=0, atol=0)
