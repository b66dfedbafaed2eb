"""The answer to a single problem that met its limits, from numbers of the host."""

from __future__ import annotations

import torch

from safe_components.estep.recovery import Found, Task
from safe_components.estep.scaling import ScaledProblem
from safe_components.estep.solution import DualSolution


def one_solution(
    task: Task, scaled: ScaledProblem, found: Found, tol: float, dtype: torch.dtype
) -> DualSolution:
    """`DualSolver`'s answer where there is one problem, and nothing in doubt, in the units of the caller.

    What follows is some forty operations on numbers: on tensors of two elements they would take as long as an
    evaluation of the dual.
    """
    center, spread = scaled.center.tolist(), scaled.spread.tolist()
    limits = scaled.limits.reshape(-1).tolist()
    temperature, *prices = found.point
    expected = [mean + unit * x for mean, unit, x in zip(center, spread, found.expectation, strict=True)]
    # Limits on costs that no q can move were taken out of the problem; here they count.
    fixed = zip(scaled.has_spread.tolist()[1:], center[1:], limits, strict=True)
    met = all(moves or value <= limit + 1e-9 * abs(value) for moves, value, limit in fixed)
    least, caps = float(task.lower[0]), task.upper.tolist()

    m = len(prices)
    numbers = [
        temperature * spread[0],
        max(float(scaled.problem.epsilon) - found.gradient[0], 0.0),  # rounding only
        expected[0],
        found.residual,
        *(price * spread[0] / unit for price, unit in zip(prices, spread[1:], strict=True)),
        *expected[1:],
    ]
    truths = [met, False, found.residual <= tol, temperature <= least]
    truths += [price >= cap for price, cap in zip(prices, caps[1:], strict=True)]
    # One tensor of each kind, and views of it.
    device = scaled.spread.device
    values = torch.tensor(numbers, dtype=scaled.spread.dtype, device=device)
    flags = torch.tensor(truths, device=device)
    eta, kl, expected_reward, residual = values[:4].unbind()
    feasible, recovered, converged, eta_at_min = flags[:4].unbind()
    return DualSolution(
        weight=found.weight.to(dtype),
        eta=eta,
        lam=values[4 : 4 + m],
        kl=kl,
        expected_reward=expected_reward,
        expected_cost=values[4 + m :],
        residual=residual,
        feasible=feasible,
        recovered=recovered,
        converged=converged,
        eta_at_min=eta_at_min,
        lam_clipped=flags[4:],
        iterations=torch.tensor(found.iterations, device=device),
    )
