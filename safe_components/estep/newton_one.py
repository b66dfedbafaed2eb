"""Projected Newton for one E-step, whose few numbers are the host's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_components.estep.recovery import Minimum
from safe_components.ops.dual import DualMoments, DualProblem, assemble_terms

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
    tensors they would take longer than the pass over all particles. So each evaluation of the dual is read by
    the host, once, and the rest is arithmetic.
    """
    low, high, at = lower.tolist(), upper.tolist(), point.tolist()
    epsilon, limits, good = float(problem.epsilon), problem.cost_limits.tolist(), float(enough)

    moments_at = _Pass(problem)

    def evaluate(where: _Vector) -> tuple[DualMoments, tuple[float, _Vector, list[_Vector]]]:
        eta, *lam = where
        theta = torch.tensor([1.0 / eta, *(-price / eta for price in lam)], dtype=point.dtype)
        moments = moments_at(theta.to(point.device))
        found = [moments.log_partition.reshape(1), moments.mean, moments.covariance.flatten()]
        log_partition, *rest = torch.cat(found).tolist()
        size = len(where)
        room = epsilon + log_partition
        gradient = [room - rest[0], *(d - cost for d, cost in zip(limits, rest[1:size], strict=True))]
        value = eta * room + sum(price * d for price, d in zip(lam, limits, strict=True))
        curvature = [entry / eta for entry in rest[size:]]
        hessian = [curvature[i : i + size] for i in range(0, size * size, size)]
        return moments, (value, gradient, hessian)

    moments, (value, gradient, hessian) = evaluate(at)
    radius, iterations, here = 1.0, 1, True
    for _ in range(max_iterations):
        if _residual(gradient, at, low, high, epsilon) <= tol or value < good:
            break
        step, size = _newton_step(at, gradient, hessian, low, high, radius)
        trial = [
            min(max(x + move, least), most) for x, move, least, most in zip(at, step, low, high, strict=True)
        ]
        moments, new = evaluate(trial)
        iterations += 1
        promised = sum(slope * (to - x) for slope, to, x in zip(gradient, trial, at, strict=True))
        here = new[0] <= value + 1e-4 * promised + 1e-14 * (1.0 + abs(value) + sum(at))
        if here:
            at, radius = trial, min(4.0 * radius, 1.0)
            value, gradient, hessian = new
        else:
            radius = 0.25 * min(radius, size)
    point = torch.tensor(at, dtype=point.dtype).to(point.device)
    terms = assemble_terms(problem, moments, point[0], point[1:]) if here else None
    return Minimum(point, torch.tensor(iterations, device=point.device), terms)


class _Pass:
    """`dual_moments` of one problem, in memory that every evaluation uses again.

    Fresh memory would be cold, and half of the calls would only arrange it. The moments of a call are
    overwritten by the next one.
    """

    def __init__(self, problem: DualProblem) -> None:
        features = problem.features
        self._features = features.flatten(1).mT  # [B K, 1 + m]
        self._x = features.clone()  # z, then the costs
        self._z, self._row = self._x[0], self._x[0].view(-1)
        self._product, self._centred = torch.empty_like(features), torch.empty_like(features)
        self._left, self._right = self._product.flatten(1), self._centred.flatten(1).mT
        self._weight = torch.empty_like(self._z)
        self._log_prior, self._states = problem.log_prior, features.shape[1]
        self._log_particles = math.log(features.shape[2]) if problem.log_prior is None else 0.0

    def __call__(self, theta: Tensor) -> DualMoments:
        torch.mv(self._features, theta, out=self._row)
        logits = self._z if self._log_prior is None else self._z + self._log_prior
        highest = logits.amax(-1, keepdim=True)
        weight = torch.sub(logits, highest, out=self._weight).exp_()
        total = weight.sum(-1, keepdim=True)
        weight.div_(total)
        log_partition = total.log_().add_(highest).mean().sub_(self._log_particles)
        torch.mul(weight, self._x, out=self._product)
        of_state = self._product.sum(-1, keepdim=True)
        torch.sub(self._x, of_state, out=self._centred)
        torch.mul(weight, self._centred, out=self._product)
        covariance = torch.mm(self._left, self._right).div_(self._states)
        return DualMoments(log_partition, of_state.mean((-2, -1)), covariance, weight)


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
