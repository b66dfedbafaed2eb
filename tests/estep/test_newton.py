"""What only the Newton solver promises: speed of convergence, degenerate problems, no synchronization."""

import math

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode

from safe_components.estep import AdamDualSolver, EStepProjector, GivenMultiplierSolver, NewtonDualSolver


def example(m=1, lead=(), seed=0, states=50, particles=16):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q_reward = random(*lead, states, particles) * 2
    q_cost = 2 + random(*lead, states, particles, m) + 0.3 * q_reward.unsqueeze(-1)
    return q_reward, q_cost, torch.full((m,), 1.9, dtype=torch.float64)


def numbers(solution):
    return [v for v in vars(solution).values() if v.is_floating_point()]


@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_converges_in_a_few_evaluations(m):
    counts = []
    for seed in range(20):
        q_reward, q_cost, limits = example(m, seed=seed)
        solution = NewtonDualSolver()(q_reward, q_cost, 0.1, limits)
        assert float(solution.residual) <= 1e-9
        counts.append(int(solution.iterations))
    assert sorted(counts)[10] <= 10
    assert max(counts) <= 20


def test_a_warm_start_saves_evaluations_and_changes_nothing():
    q_reward, q_cost, limits = example(2)
    solve = NewtonDualSolver()
    cold = solve(q_reward, q_cost, 0.1, limits)
    warm = solve(q_reward, q_cost, 0.1, limits, init=(cold.eta, cold.lam))
    assert int(warm.iterations) == 1
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-7, atol=1e-12)
    other = solve(q_reward + 0.1, q_cost * 1.05, 0.1, limits, init=(cold.eta, cold.lam))
    again = solve(q_reward + 0.1, q_cost * 1.05, 0.1, limits)
    assert int(other.iterations) < int(again.iterations)
    torch.testing.assert_close(other.weight, again.weight, rtol=1e-6, atol=1e-10)
    nothing = (torch.tensor(torch.nan), torch.full((2,), torch.nan))
    assert torch.equal(solve(q_reward, q_cost, 0.1, limits, init=nothing).weight, cold.weight)


@pytest.mark.parametrize("eta", [1e-8, 1e-3, 1e3, 1e8])
@pytest.mark.parametrize("lam", [0.0, 1e4])
def test_a_bad_start_costs_time_only(eta, lam):
    q_reward, q_cost, limits = example(1)
    cold = NewtonDualSolver()(q_reward, q_cost, 0.1, limits)
    init = (torch.tensor(eta).double(), torch.tensor([lam]).double())
    other = NewtonDualSolver()(q_reward, q_cost, 0.1, limits, init=init)
    assert bool(other.converged)
    torch.testing.assert_close(other.weight, cold.weight, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_of_problems_equals_a_loop(device):
    q_reward, q_cost, _ = (x.to(device) for x in example(2, lead=(3, 2)))
    limits = torch.linspace(1.2, 2.4, 12, dtype=torch.float64, device=device).reshape(3, 2, 2)
    epsilon = torch.linspace(0.02, 0.5, 6, dtype=torch.float64, device=device).reshape(3, 2)
    together = NewtonDualSolver()(q_reward, q_cost, epsilon, limits)
    assert together.eta.shape == (3, 2)
    assert together.lam.shape == (3, 2, 2)
    for i in range(3):
        for j in range(2):
            alone = NewtonDualSolver()(q_reward[i, j], q_cost[i, j], epsilon[i, j], limits[i, j])
            for name, value in vars(alone).items():
                if name in ("iterations", "residual"):
                    continue
                torch.testing.assert_close(vars(together)[name][i, j], value, rtol=1e-6, atol=1e-9)


class WithoutTheHost(TorchDispatchMode):
    """Fails where a value reaches Python, decides a shape, or comes from Python in a tensor's memory.

    ``lift_fresh`` is the entry of a tensor made of Python numbers; assigning a number to a slice makes one.
    Its copy to the device cannot be captured in a CUDA graph.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        banned = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "lift_fresh")
        assert not any(word in name for word in banned), name
        return func(*args, **(kwargs or {}))


def test_the_guard_notices_reads_and_copies():
    x = torch.zeros(2)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), WithoutTheHost():
        float(x[0])
    with pytest.raises(AssertionError, match="lift_fresh"), WithoutTheHost():
        x[0] = 1.0
    with WithoutTheHost():
        x.select(0, 0).fill_(1.0)
    assert x.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("level", [1.9, 0.5])  # can be met, and cannot
@pytest.mark.parametrize(("infeasible", "lam_max"), [("recover", None), ("clip", 2.0)])
def test_the_fixed_mode_leaves_the_host_alone_and_answers_the_same(m, level, infeasible, lam_max, device):
    q_reward, q_cost, _ = (x.to(device) for x in example(m))
    limits = torch.full((m,), level, dtype=torch.float64, device=device)
    epsilon = torch.tensor(0.1, dtype=torch.float64, device=device)
    problem = q_reward, q_cost, epsilon, limits
    solve = NewtonDualSolver(fixed_iterations=25, lam_max=lam_max)
    with WithoutTheHost():
        fixed = solve(*problem, infeasible=infeasible)
        warm = solve(*problem, infeasible=infeasible, init=(fixed.eta, fixed.lam))
    adaptive = NewtonDualSolver(lam_max=lam_max)(*problem, infeasible=infeasible)
    assert bool(fixed.feasible) == (m == 0 or level == 1.9)
    for name, value in vars(adaptive).items():
        if name != "iterations":
            torch.testing.assert_close(vars(fixed)[name], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(warm.weight, fixed.weight, rtol=1e-6, atol=1e-9)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), WithoutTheHost():
        NewtonDualSolver()(*problem)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("level", [1.9, 0.5])
@pytest.mark.parametrize("kind", ["newton", "adam", "given"])
def test_the_projector_leaves_the_host_alone_with_such_a_solver(kind, level, device):
    lam = torch.ones(1, device=device)
    newton = NewtonDualSolver(fixed_iterations=10)
    solver = {"newton": newton, "adam": AdamDualSolver(steps=5)}.get(kind)
    solver = solver or GivenMultiplierSolver(lambda: lam, newton)
    q_reward, q_cost, _ = (x.to(device) for x in example(1))
    data = TensorDict(particles={"q_reward": q_reward, "q_cost": q_cost}, batch_size=[len(q_reward)])
    projector = EStepProjector(0.1, level, solver, check_finite=False).to(device)
    assert not projector.synchronizes
    with WithoutTheHost():
        projector(data)
    assert EStepProjector(0.1, level, solver).synchronizes  # its check for values that are not finite waits
    assert EStepProjector(0.1, level, check_finite=False).synchronizes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("fused", [False, True])
def test_the_fixed_mode_replays_in_a_cuda_graph(fused):
    q_reward, q_cost, limits = (x.cuda() for x in example(2))
    epsilon = torch.tensor(0.1, dtype=torch.float64, device="cuda")
    solve = NewtonDualSolver(fixed_iterations=20, fused=fused)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            solve(q_reward, q_cost, epsilon, limits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = solve(q_reward, q_cost, epsilon, limits)
    new_reward, new_cost, _ = (x.cuda() for x in example(2, seed=5))
    q_reward.copy_(new_reward)
    q_cost.copy_(new_cost)
    graph.replay()
    torch.cuda.synchronize()
    expected = NewtonDualSolver()(new_reward, new_cost, epsilon, limits)
    torch.testing.assert_close(captured.weight, expected.weight, rtol=1e-9, atol=1e-12)


def test_parallel_estimates_leave_the_ball_slack():
    """Q_c = Q_r: the limit alone decides, and of all q that reach it the closest to the prior is right."""
    q_reward, _, _ = example(0)
    q_reward = q_reward + 2
    limits = torch.tensor([2.1]).double()
    assert q_reward.mean() < 2.1
    solution = NewtonDualSolver()(q_reward, q_reward.unsqueeze(-1), 0.1, limits)
    assert bool(solution.converged)
    assert bool(solution.eta_at_min)
    assert float(solution.kl) < 0.1
    assert float(solution.expected_reward) == pytest.approx(2.1, abs=1e-7)
    spread = float((q_reward - q_reward.mean(1, keepdim=True)).square().mean().sqrt())
    assert float(solution.lam) == pytest.approx(1.0, abs=1e-4)
    # The least divergence with this mean is an exponential tilt: solve for it by bisection.
    low, high = 0.0, 5.0 / spread
    for _ in range(100):
        tilt = (low + high) / 2
        mean = ((tilt * q_reward).softmax(-1) * q_reward).sum(1).mean()
        low, high = (tilt, high) if mean < 2.1 else (low, tilt)
    torch.testing.assert_close(solution.weight, (low * q_reward).softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("limit", [1.9, 1.0])
def test_a_ball_wider_than_the_simplex_is_a_linear_program(limit):
    q_reward, q_cost, _ = example(1)
    limits = torch.tensor([limit]).double()
    solution = NewtonDualSolver()(q_reward, q_cost, 10.0, limits)
    assert bool(solution.converged)
    assert bool(solution.eta_at_min)
    assert float(solution.expected_cost) <= limit + 1e-6
    # The optimum of the linear program by its own dual: min over lam of mean max_k (Q_r - lam Q_c) + lam d.
    lam = torch.linspace(0, 20, 200001, dtype=torch.float64)
    values = torch.stack([(q_reward - x * q_cost.squeeze(-1)).amax(1).mean() + x * limit for x in lam[::50]])
    best = lam[::50][values.argmin()]
    fine = torch.linspace(float(best) - 0.006, float(best) + 0.006, 4001, dtype=torch.float64).clamp_min(0)
    optimum = min((q_reward - x * q_cost.squeeze(-1)).amax(1).mean() + x * limit for x in fine)
    # eta_min leaves at most eta_min log K of a spread (2 here); the grid errs by its step, 3e-6.
    assert float(solution.expected_reward) == pytest.approx(float(optimum), abs=5e-5)


def test_equal_rewards_change_no_more_than_the_limits_ask():
    _, q_cost, _ = example(1)
    q_reward = torch.full_like(q_cost.squeeze(-1), 3.0)
    free = NewtonDualSolver()(q_reward, q_cost, 0.1, torch.tensor([9.0]))
    torch.testing.assert_close(free.weight, torch.full_like(q_reward, 1 / 16))
    assert float(free.kl) < 1e-12
    bound = NewtonDualSolver()(q_reward, q_cost, 0.1, torch.tensor([1.9]))
    assert bool(bound.converged)
    assert bool(bound.feasible)
    assert float(bound.expected_cost) == pytest.approx(1.9, abs=1e-6)
    low, high = 0.0, 5.0
    for _ in range(100):
        tilt = (low + high) / 2
        mean = ((-tilt * q_cost).softmax(1) * q_cost).sum(1).mean()
        low, high = (tilt, high) if mean > float(torch.tensor(1.9)) else (low, tilt)
    torch.testing.assert_close(bound.weight, (-low * q_cost).softmax(1).squeeze(-1), rtol=1e-5, atol=1e-7)


def test_all_estimates_equal():
    q = torch.full((4, 8), 2.0)
    solution = NewtonDualSolver()(q, q.unsqueeze(-1), 0.1, torch.tensor([3.0]))
    torch.testing.assert_close(solution.weight, torch.full_like(q, 1 / 8))
    assert bool(solution.feasible)
    assert all(bool(v.isfinite().all()) for v in numbers(solution))


@pytest.mark.parametrize("fixed", [None, 30])
def test_never_nan(fixed):
    """Single states, two particles, ties, outliers, tiny and huge balls, limits within and out of reach."""
    solve = NewtonDualSolver(fixed_iterations=fixed)
    generator = torch.Generator().manual_seed(0)
    flags = set()
    for trial in range(300 if fixed is None else 75):
        states = [1, 2, 20][trial % 3]
        particles = [3, 2, 16][(trial // 3) % 3]
        m = trial % 4
        shape = (states, particles)
        q_reward = torch.randn(shape, generator=generator, dtype=torch.float64)
        q_cost = torch.randn((*shape, m), generator=generator, dtype=torch.float64)
        if trial % 5 == 0:
            q_reward = q_reward / torch.randn(shape, generator=generator, dtype=torch.float64)  # Cauchy
        if trial % 7 == 0:
            q_reward, q_cost = q_reward.round(), q_cost.round()  # ties
        if trial % 11 == 0:
            q_cost = (10 * q_cost).exp()
        if trial % 13 == 0 and m:
            q_cost[..., 0] = q_reward  # parallel
        epsilon = 10.0 ** float(torch.empty(()).uniform_(-6, 1, generator=generator))
        scale = 10.0 ** float(torch.empty(()).uniform_(-6, 6, generator=generator))
        limits = torch.rand(m, generator=generator, dtype=torch.float64)
        solution = solve(scale * q_reward, q_cost, epsilon, limits)
        assert all(bool(v.isfinite().all()) for v in numbers(solution))
        torch.testing.assert_close(solution.weight.sum(-1), torch.ones(states, dtype=torch.float64))
        if fixed is None:
            assert bool(solution.converged), (trial, epsilon, scale, float(solution.residual))
            assert float(solution.kl) <= epsilon * (1 + 1e-6) + 1e-12
        flags.add((bool(solution.feasible), bool(solution.eta_at_min)))
    assert len(flags) == 4


def test_iterations_that_do_not_suffice_are_reported():
    q_reward, q_cost, limits = example(2)
    solution = NewtonDualSolver(max_iterations=2)(q_reward, q_cost, 0.1, limits)
    assert not bool(solution.converged)
    assert float(solution.residual) > 1e-9
    assert math.isfinite(float(solution.residual))
