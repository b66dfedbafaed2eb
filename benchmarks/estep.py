"""The E-step's dual solvers side by side: time and optimality residual on the same problems.

    python benchmarks/estep.py [--states 300] [--particles 64] [--costs 1] [--repeats 60] [--device cpu]

All solvers run in turn on the same problem, a new one each round, so that other load on the machine affects
all of them. Times are medians of the wall clock and of the processor's time, which other processes disturb
less. The ratio is the median over rounds of a solver's time to that of the published E-step in the same
round. The residual is the largest violation of the optimality conditions relative to scale
(``safe_components.estep.kkt_residual``). A warm solver starts from the multipliers of a problem whose
estimates differ by 1 %, as those of successive batches do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from safe_components.estep import (
    AdamDualSolver,
    DualSolution,
    NewtonDualSolver,
    SLSQPDualSolver,
    dual_problem,
    minimum_at,
    scale_problem,
)

EPSILON = 0.1


def problem(states: int, particles: int, costs: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw estimates whose spread differs from state to state, and limits that bind and can be met."""
    generator = torch.Generator().manual_seed(seed)
    level = 5 * torch.randn(states, 1, generator=generator)
    q_reward = level + 2 * torch.randn(states, particles, generator=generator)
    q_cost = torch.randn(states, particles, costs, generator=generator).abs()
    q_cost = q_cost * 3 * torch.rand(states, 1, 1, generator=generator)
    q_cost = q_cost + 2 * torch.rand(states, particles, costs, generator=generator)
    limits = q_cost.mean((0, 1)) - 0.2
    return q_reward.to(device), q_cost.to(device), limits.to(device)


def published(q_reward: Tensor, q_cost: Tensor, limits: Tensor) -> tuple[NDArray[np.float64], int]:
    """Solve as the authors' E-step does: no check, no recovery, and gradients by SciPy's differences."""
    # In float64: the differences are smaller than the rounding of float32, which NumPy 1 would keep.
    reward, cost, limit = (x.double().cpu().numpy() for x in (q_reward, q_cost, limits))

    def dual(x: NDArray[np.float64]) -> float:
        combined = reward - (cost[..., 0] * x[1] if cost.shape[-1] == 1 else cost @ x[1:])
        highest = combined.max(1)
        inner = np.exp((combined - highest[:, None]) / x[0]).mean(1)
        return x[0] * EPSILON + x[1:] @ limit + highest.mean() + x[0] * np.log(inner).mean()

    start = np.concatenate([[1.0], np.full(len(limit), 0.1)])
    bounds = [(1e-6, 1e5)] * len(start)
    options = {"ftol": 1e-3, "maxiter": 10}
    result = minimize(dual, start, method="SLSQP", bounds=bounds, tol=1e-3, options=options)
    return result.x, result.nfev


def residual_at(q_reward: Tensor, q_cost: Tensor, limits: Tensor, eta: float, lam: Tensor) -> float:
    """The optimality residual of multipliers found elsewhere."""
    scaled = scale_problem(dual_problem(q_reward, q_cost, EPSILON, limits))
    s = scaled.spread
    point = torch.cat([torch.tensor([eta]).to(s), lam.to(s) * s[1:]]) / s[0]
    return float(minimum_at(scaled, point, torch.tensor(1)).residual)


def clocks(device: str) -> tuple[float, float]:
    """Wall clock and processor time, seconds."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], device: str) -> tuple[float, float]:
    """Seconds that have passed on both clocks."""
    wall, processor = clocks(device)
    return wall - start[0], processor - start[1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--states", type=int, default=300)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--costs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    newton, fixed = NewtonDualSolver(), NewtonDualSolver(fixed_iterations=12)
    adam, one_step = AdamDualSolver(), AdamDualSolver(steps=1)
    exact_slsqp = SLSQPDualSolver()
    Solve = Callable[..., DualSolution]
    solvers: dict[str, tuple[Solve, bool]] = {
        "SLSQP, exact gradient": (exact_slsqp, False),
        "Adam, 1 step, warm": (one_step, True),
        "Adam, 500 steps": (adam, False),
        "Newton": (newton, False),
        "Newton, warm": (newton, True),
        "Newton, 12 fixed evaluations": (fixed, False),
    }
    reference = "published SLSQP (10 iterations)"
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (reference, *solvers)}
    residuals: dict[str, list[float]] = {name: [] for name in seconds}
    evaluations: dict[str, list[int]] = {name: [] for name in seconds}
    for repeat in range(-3, options.repeats):  # the first rounds warm up
        q_reward, q_cost, limits = problem(
            options.states, options.particles, options.costs, repeat + 3, options.device
        )
        start = clocks(options.device)
        point, count = published(q_reward, q_cost, limits)
        elapsed = since(start, options.device)
        if repeat >= 0:
            eta, lam = point[0], torch.from_numpy(point[1:])
            seconds[reference].append(elapsed)
            residuals[reference].append(residual_at(q_reward, q_cost, limits, eta, lam))
            evaluations[reference].append(count)
        before = newton(q_reward * 1.01, q_cost * 0.99, EPSILON, limits * 0.99)
        for name, (solve, warm) in solvers.items():
            if solve is adam and repeat % 10:
                continue
            init = (before.eta, before.lam) if warm else None
            start = clocks(options.device)
            solution = solve(q_reward, q_cost, EPSILON, limits, init=init)
            elapsed = since(start, options.device)
            if repeat >= 0:
                seconds[name].append(elapsed)
                residuals[name].append(float(solution.residual))
                evaluations[name].append(int(solution.iterations))

    print(
        f"[{options.states}, {options.particles}], {options.costs} cost(s), {options.device}, "
        f"{options.threads} thread(s), {options.repeats} rounds"
    )
    print(
        f"{'solver':34}{'wall ms':>9}{'ratio':>7}{'CPU ms':>9}{'ratio':>7}"
        f"{'evaluations':>13}{'residual, median':>18}{'worst':>10}"
    )
    for name in seconds:
        rounds = range(0, options.repeats, options.repeats // len(seconds[name]))[: len(seconds[name])]
        times = ""
        for clock in (0, 1):
            own = [t[clock] for t in seconds[name]]
            ratio = median(t / seconds[reference][r][clock] for t, r in zip(own, rounds, strict=True))
            times += f"{1e3 * median(own):9.2f}{ratio:7.2f}"
        print(
            f"{name:34}{times}{median(evaluations[name]):13.0f}"
            f"{median(residuals[name]):18.1e}{max(residuals[name]):10.1e}"
        )


if __name__ == "__main__":
    main()
