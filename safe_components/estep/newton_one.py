"""Projected Newton for one E-step, whose few numbers are the host's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_components.estep.recovery import Found, Minimum
from safe_components.ops.dual import DualProblem

_Vector = list[float]


def minimise_one(
    problem: DualProblem,
    point: Tensor,
    lower: Tensor,
    upper: Tensor,
    enough: Tensor,
    tol: float,
    max_iterations: int,
) -> Minimum:
    """What `NewtonDualSolver` does to many problems at once, for a single one: ``point`` is ``[1 + m]``.

    A Newton step of two or three multipliers is some dozens of operations on numbers; as operations on
    tensors they would take longer than the pass over all particles. So the host reads what an evaluation of
    the dual finds, and the rest is arithmetic.
    """
    low, high, at = lower.tolist(), upper.tolist(), point.tolist()
    epsilon, limits, good = float(problem.epsilon), problem.cost_limits.tolist(), float(enough)

    look = _Pass(problem)

    def evaluate(eta: float, *lam: float) -> tuple[float, _Vector, _Vector]:
        """Value, gradient, and expectation of z and the costs."""
        log_partition, *mean = look([1.0 / eta, *(-price / eta for price in lam)])
        room = epsilon + log_partition
        gradient = [room - mean[0], *(d - cost for d, cost in zip(limits, mean[1:], strict=True))]
        value = eta * room + sum(price * d for price, d in zip(lam, limits, strict=True))
        return value, gradient, mean

    value, gradient, mean = evaluate(*at)
    radius, iterations, here = 1.0, 1, True
    hessian: list[_Vector] = []
    for _ in range(max_iterations):
        if _residual(gradient, at, low, high, epsilon) <= tol or value < good:
            break
        if here:
            hessian = [[entry / at[0] for entry in row] for row in look.covariance()]
        step, length = _newton_step(at, gradient, hessian, low, high, radius)
        trial = [
            min(max(x + move, least), most) for x, move, least, most in zip(at, step, low, high, strict=True)
        ]
        new = evaluate(*trial)
        iterations += 1
        promised = sum(slope * (to - x) for slope, to, x in zip(gradient, trial, at, strict=True))
        here = new[0] <= value + 1e-4 * promised + 1e-14 * (1.0 + abs(value) + sum(at))
        if here:
            at, radius = trial, min(4.0 * radius, 1.0)
            value, gradient, mean = new
        else:
            radius = 0.25 * min(radius, length)

    if not here:
        value, gradient, mean = evaluate(*at)
    reward = at[0] * mean[0] + sum(price * cost for price, cost in zip(at[1:], mean[1:], strict=True))
    residual = _residual(gradient, at, low, high, epsilon)
    found = Found(at, value, gradient, [reward, *mean[1:]], residual, iterations, look.weight)
    return Minimum(point.new_tensor(at), torch.tensor(iterations, device=point.device), found)


class _Pass:
    """`dual_moments` of one problem, as numbers, in memory that every evaluation uses again.

    Fresh memory would be cold, and half of the calls would only arrange it. What `weight` and `covariance`
    give belongs to the last call.
    """

    def __init__(self, problem: DualProblem) -> None:
        features = problem.features
        self._features = features.flatten(1).mT  # [B K, 1 + m]
        self._x = torch.empty_like(features)  # z, then the costs
        self._x[1:] = features[1:]
        self._z, self._row = self._x[0], self._x[0].view(-1)
        self._product, self._centred = torch.empty_like(features), torch.empty_like(features)
        self._left, self._right = self._product.flatten(1), self._centred.flatten(1).mT
        self.weight = torch.empty_like(self._z)
        self._log_prior, self._states = problem.log_prior, features.shape[1]
        self._log_particles = math.log(features.shape[2]) if problem.log_prior is None else 0.0

    def __call__(self, theta: _Vector) -> _Vector:
        """Log-partition, then the mean of ``x``."""
        torch.mv(self._features, self._features.new_tensor(theta), out=self._row)
        logits = self._z if self._log_prior is None else self._z + self._log_prior
        highest = logits.amax(-1, keepdim=True)
        weight = torch.sub(logits, highest, out=self.weight).exp_()
        total = weight.sum(-1, keepdim=True)
        weight.div_(total)
        log_partition = total.log_().add_(highest)
        torch.mul(weight, self._x, out=self._product)
        self._of_state = self._product.sum(-1, keepdim=True)
        sums = torch.cat([log_partition.unsqueeze(0), self._of_state]).sum((-2, -1)).tolist()
        log_sum, *mean = [number / self._states for number in sums]
        return [log_sum - self._log_particles, *mean]

    def covariance(self) -> list[_Vector]:
        """Of ``x``, ``[1 + m, 1 + m]``."""
        torch.sub(self._x, self._of_state, out=self._centred)
        torch.mul(self.weight, self._centred, out=self._product)
        return torch.mm(self._left, self._right).div_(self._states).tolist()


def _residual(gradient: _Vector, at: _Vector, low: _Vector, high: _Vector, epsilon: float) -> float:
    """`kkt_residual` of one problem."""
    room = [
        x - least if slope > 0 else max(x - most, -1.0)
        for slope, x, least, most in zip(gradient, at, low, high, strict=True)
    ]
    return max(-gradient[0] / epsilon, *(slope * r for slope, r in zip(gradient, room, strict=True)))


def _newton_step(
    at: _Vector, gradient: _Vector, hessian: list[_Vector], low: _Vector, high: _Vector, radius: float
) -> tuple[_Vector, float]:
    """The step of the same name in ``newton.py``, which says what it is."""
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
    sizes = [abs(step[i]) / (10.0 + 10.0 * at[i]) for i in range(1, size)]
    full = max(move / (9.0 * eta), move / (-0.9 * eta), *sizes)
    share = min(radius / max(full, 1e-300), 1.0)
    return [entry * share for entry in step], full * share
