"""Unit spread for every estimate, so that one tolerance and one set of bounds fit all problems."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from safe_components.ops.dual import DualProblem

# A spread below this share of the estimates' size is rounding, not a preference between actions.
_NO_SPREAD = 1e-13


class ScaledProblem(NamedTuple):
    """A dual problem in units of each estimate's spread, and the way back."""

    problem: DualProblem
    limits: Tensor
    """``[..., m]``: the limits, unscaled."""
    center: Tensor
    """``[..., 1 + m]``: mean estimate under the prior."""
    spread: Tensor
    """``[..., 1 + m]``: the unit of reward and of each cost."""
    has_spread: Tensor
    """``[..., 1 + m]`` bool: false where all actions of every state are worth the same."""


def scale_problem(problem: DualProblem) -> ScaledProblem:
    """Centre every estimate per state and divide it by its spread ``s``.

        s_i^2 = mean_b Var_p(Q_i[b, .])
        Q_i'  = (Q_i - E_p Q_i) / s_i
        d_i'  = (d_i - mean_b E_p Q_i) / s_i

    leaves the optimal ``q`` as it is and turns the multipliers into ``eta' = eta / s_r`` and
    ``lam_i' = lam_i s_i / s_r``. A cost without spread cannot be moved by any ``q``: its features and its
    limit become 0, which takes it out of the problem.
    """
    features = problem.features
    if problem.log_prior is None:
        base = features.mean(-1, keepdim=True)
    else:
        prior = problem.log_prior.exp().unsqueeze(-3)
        base = (prior * features).sum(-1, keepdim=True)
    centred = features - base
    if problem.log_prior is None:
        entries = features.shape[-2] * features.shape[-1]
        spread = torch.linalg.vector_norm(centred, dim=(-2, -1)) / math.sqrt(entries)
    else:
        square = centred.square() * prior
        centred = torch.where(prior > 0, centred, 0.0)
        spread = square.sum(-1).mean(-1).sqrt()
    center = base.mean((-2, -1))
    size = torch.linalg.vector_norm(base, dim=(-2, -1)) / math.sqrt(features.shape[-2])
    has_spread = spread > _NO_SPREAD * size
    spread = spread.masked_fill(~has_spread, 1.0)
    inverse = has_spread / spread
    limits = (problem.cost_limits - center[..., 1:]) * inverse[..., 1:]
    scaled = problem._replace(features=centred.mul_(inverse[..., None, None]), cost_limits=limits)
    return ScaledProblem(scaled, problem.cost_limits, center, spread, has_spread)
