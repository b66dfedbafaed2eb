"""The fast twin of ``newton.py`` for a single problem, with its unknowns held as Python floats.

A Newton step for two or three multipliers takes some dozens of operations. As operations on tensors they
would take longer than a pass over all particles, so the host reads the sums of each pass, and the rest is
arithmetic on floats. ``tests/laws/test_newton_twins.py`` holds both equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_components.estep.problem import DualProblem, ScaledProblem
from safe_components.estep.solve import Minimum

_Vector = list[float]


def minimize_one(problem: ScaledProblem, start: Tensor, tol: float, max_iterations: int) -> Minimum:
    """Do what :class:`~safe_components.estep.NewtonDualSolver` does, for ``start`` ``[1 + m]``."""
    dual, at, low, high = problem.dual, start.tolist(), problem.lower.tolist(), problem.upper.tolist()
    epsilon, limits, below = float(dual.epsilon), dual.cost_limits.tolist(), float(problem.unreachable_below)
    moments = _Moments(dual)

    def evaluate(eta: float, *lam: float) -> tuple[float, _Vector, _Vector]:
        """Value, gradient, and expectation of the costs."""
        log_total, highest, *mean = moments([1.0 / eta, *(-price / eta for price in lam)])
        slope = epsilon + log_total
        gradient = [slope - mean[0], *(d - cost for d, cost in zip(limits, mean[1:], strict=True))]
        value = eta * (slope + highest) + sum(price * d for price, d in zip(lam, limits, strict=True))
        return value, gradient, mean[1:]

    value, gradient, costs = evaluate(*at)
    radius, iterations, accept = 1.0, 1, True
    hessian: list[_Vector] = []
    for _ in range(max_iterations):
        if _residual(gradient, at, low, high, epsilon) <= tol or value < below:
            break
        if accept:
            hessian = [[entry / at[0] for entry in row] for row in moments.covariance()]
        step, size = _newton_step(at, gradient, hessian, low, high, radius)
        trial = [
            min(max(x + move, least), most) for x, move, least, most in zip(at, step, low, high, strict=True)
        ]
        new = evaluate(*trial)
        iterations += 1
        promised = sum(slope * (to - x) for slope, to, x in zip(gradient, trial, at, strict=True))
        accept = new[0] <= value + 1e-4 * promised + 1e-14 * (1.0 + abs(value) + sum(at))
        if accept:
            at, radius = trial, min(4.0 * radius, 1.0)
            value, gradient, costs = new
        else:
            radius = 0.25 * min(radius, size)

    if not accept:  # the weights must be those at the last accepted point
        value, gradient, costs = evaluate(*at)
    expectation = [moments.expected_reward(), *costs]
    residual = _residual(gradient, at, low, high, epsilon)
    return Minimum(at, value, gradient, expectation, residual, moments.weight, iterations)


class _Moments:
    """The moments in ``dual_terms`` of a single problem, as floats.

    Every evaluation uses the same memory, because fresh memory would be cold. ``weight``, ``covariance`` and
    ``expected_reward`` belong to the last call.
    """

    def __init__(self, problem: DualProblem) -> None:
        features = problem.features
        self._features = features.flatten(1).mT  # [B K, 1 + m]
        self._x = torch.empty_like(features)  # z below its highest logit, then the costs
        self._x[1:] = features[1:]
        self._z, self._row = self._x[0], self._x[0].view(-1)
        self._product, self._centered = torch.empty_like(features), torch.empty_like(features)
        self._left, self._right = self._product.flatten(1), self._centered.flatten(1).mT
        self.weight = torch.empty_like(self._z)
        self._log_prior, self._states = problem.log_prior, features.shape[1]
        self._excluded = None if problem.log_prior is None else problem.log_prior.isneginf()
        self._log_particles = math.log(features.shape[2]) if problem.log_prior is None else 0.0

    def __call__(self, theta: _Vector) -> _Vector:
        """Log-sum below the highest logit, that logit, the mean of ``x``; with ``z = theta · features``."""
        torch.mv(self._features, self._features.new_tensor(theta), out=self._row)
        logits = self._z if self._log_prior is None else self._z + self._log_prior
        highest = logits.amax(-1, keepdim=True)
        logits = torch.sub(logits, highest, out=self._z)
        weight = torch.exp(logits, out=self.weight)
        total = weight.sum(-1, keepdim=True)
        weight.div_(total)
        if self._log_prior is not None and self._excluded is not None:
            self._z.sub_(self._log_prior).masked_fill_(self._excluded, 0.0)
        torch.mul(weight, self._x, out=self._product)
        self._of_state = self._product.sum(-1, keepdim=True)
        per_state = torch.cat([total.log_().unsqueeze(0), highest.unsqueeze(0), self._of_state])
        log_sum, *others = [number / self._states for number in per_state.sum((-2, -1)).tolist()]
        return [log_sum - self._log_particles, *others]

    def expected_reward(self) -> float:
        """``mean_b E_q`` of the reward."""
        return float(torch.dot(self.weight.view(-1), self._features[:, 0])) / self._states

    def covariance(self) -> list[_Vector]:
        """``mean_b Cov_q(x, x)``, ``[1 + m, 1 + m]``."""
        torch.sub(self._x, self._of_state, out=self._centered)
        torch.mul(self.weight, self._centered, out=self._product)
        second: list[_Vector] = torch.mm(self._left, self._right).div_(self._states).tolist()
        return second


def _residual(gradient: _Vector, at: _Vector, low: _Vector, high: _Vector, epsilon: float) -> float:
    """``kkt_residual`` of a single problem."""
    factors = [
        x - least if slope > 0 else -min((most - x) / min(max(most, 1e-300), 1.0), 1.0)
        for slope, x, least, most in zip(gradient, at, low, high, strict=True)
    ]
    return max(-gradient[0] / epsilon, *(slope * x for slope, x in zip(gradient, factors, strict=True)))


def _newton_step(
    at: _Vector, gradient: _Vector, hessian: list[_Vector], low: _Vector, high: _Vector, radius: float
) -> tuple[_Vector, float]:
    """``newton._newton_step`` of a single problem."""
    size = len(at)
    free = [at[i] > low[i] if gradient[i] > 0 else at[i] < high[i] for i in range(size)]
    rows = [
        [hessian[i][j] if free[i] and free[j] else 0.0 for j in range(size)]
        + [gradient[i] if free[i] else 0.0]
        for i in range(size)
    ]
    for i in range(size):
        rows[i][i] = rows[i][i] * (1.0 + 1e-12) + 1e-120 if free[i] else 1.0
    curvature = rows[0][0]
    for i in range(1, size):
        pivot = rows[i][i] or 1e-300
        scaled = [entry / pivot for entry in rows[i]]
        for j in range(size):
            factor = rows[j][i]
            rows[j] = scaled if i == j else [x - factor * y for x, y in zip(rows[j], scaled, strict=True)]
    eta = at[0]
    left = max(rows[0][0], 1e-10 * curvature)
    move = max(-rows[0][-1] / left, low[0] - eta, -0.9 * radius * eta)
    move = min(move, 9.0 * radius * eta)
    step = [move, *(-row[-1] - row[0] * move for row in rows[1:])]
    step = [
        change if (at[i] < high[i] if change > 0 else at[i] > low[i]) else 0.0
        for i, change in enumerate(step)
    ]
    sizes = [abs(step[i]) / (10.0 + 10.0 * at[i]) for i in range(1, size)]
    full = max(move / (9.0 * eta), move / (-0.9 * eta), *sizes)
    share = min(radius / max(full, 1e-300), 1.0)
    return [entry * share for entry in step], full * share
