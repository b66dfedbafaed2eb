"""A solver's task and its outcome, and the task that is left where no distribution meets the limits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from safe_components.estep.kkt import kkt_residual
from safe_components.estep.scaling import ScaledProblem
from safe_components.ops.dual import DualProblem, DualTerms, dual_terms


class Found(NamedTuple):
    """What a solver of a single problem has read at the point where it stopped: numbers of the host."""

    point: list[float]
    value: float
    gradient: list[float]
    expectation: list[float]
    residual: float
    """`kkt_residual`"""
    iterations: int
    """evaluations spent"""
    weight: Tensor
    """``[B, K]``"""


class Minimum(NamedTuple):
    """Where a solver stopped on one scaled dual problem."""

    point: Tensor
    """``[..., 1 + m]``: ``(eta, lam)``, scaled."""
    iterations: Tensor
    """``[...]`` int: evaluations spent."""
    found: Found | None = None
    """the dual at ``point``, where the solver has read it"""

    def evaluated(self, problem: DualProblem) -> DualTerms:
        """The dual at ``point``."""
        if self.found is not None:
            number = self.point.new_tensor
            gradient, expectation = number(self.found.gradient), number(self.found.expectation)
            return DualTerms(number(self.found.value), gradient, number([]), expectation, self.found.weight)
        return dual_terms(problem, self.point[..., 0], self.point[..., 1:], hessian=False)


class Task(NamedTuple):
    """Arguments of :meth:`DualSolver.minimise`."""

    problem: DualProblem
    start: Tensor
    lower: Tensor
    upper: Tensor
    spread: Tensor
    enough: Tensor


class Answer(NamedTuple):
    """A minimum with what follows from it, scaled."""

    point: Tensor
    gradient: Tensor
    expectation: Tensor
    weight: Tensor
    residual: Tensor
    iterations: Tensor

    def where(self, condition: Tensor, other: Answer) -> Answer:
        """Own entries where ``condition`` ``[...]`` holds, ``other``'s elsewhere; evaluations add up."""

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            mask = condition.reshape(condition.shape + (1,) * (mine.ndim - condition.ndim))
            return torch.where(mask, mine, theirs)

        picked = Answer(*(pick(a, b) for a, b in zip(self, other, strict=True)))
        return picked._replace(iterations=self.iterations + other.iterations)


def relief(scaled: ScaledProblem, eta_min: float) -> Task:
    """To find the least sum of violations, in spreads, that the ball allows."""
    # `fill_` hands its number to the kernel; `x[..., 0] = 1.0` copies it from the host, as no CUDA graph may.
    features = scaled.problem.features.clone()
    features.select(-3, 0).zero_()
    upper = scaled.has_spread.to(features.dtype)
    upper.select(-1, 0).fill_(torch.inf)
    lower = torch.zeros_like(upper)
    lower.select(-1, 0).fill_(eta_min)
    start = upper.clone()
    start[..., 0] = (2.0 * scaled.problem.epsilon).rsqrt()
    spread = scaled.spread.clone()
    spread.select(-1, 0).fill_(1.0)
    enough = torch.full_like(start[..., 0], -torch.inf)
    return Task(scaled.problem._replace(features=features), start, lower, upper, spread, enough)


def recovery(scaled: ScaledProblem, task: Task, minimum: Minimum) -> tuple[Answer, Tensor]:
    """The ``q`` that has the least sum of violations, and that sum."""
    terms = minimum.evaluated(task.problem)
    residual = kkt_residual(terms.gradient, minimum.point, task.lower, task.upper, task.problem.epsilon)
    reward = (terms.weight * scaled.problem.features[..., 0, :, :]).sum(-1).mean(-1)
    expectation = torch.cat([reward.unsqueeze(-1), terms.expectation[..., 1:]], dim=-1)
    answer = Answer(minimum.point, terms.gradient, expectation, terms.weight, residual, minimum.iterations)
    return answer, -terms.value
