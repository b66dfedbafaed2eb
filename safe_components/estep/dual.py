"""The E-step's dual function: value, gradient, Hessian, and the weights that belong to a point."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from safe_components.estep.problem import DualProblem


class DualTerms(NamedTuple):
    """The dual and its derivatives at one point, with the expectations that they consist of."""

    value: Tensor
    """``[...]``, in the unit of the reward estimates."""
    gradient: Tensor
    """``[..., 1 + m]``: ``(ε − KL, d − E_q Q_c)``, the slack of each constraint."""
    hessian: Tensor
    """``[..., 1 + m, 1 + m]``, positive semidefinite; no elements if it was not requested."""
    expectation: Tensor
    """``[..., 1 + m]``: ``mean_b E_q`` of the reward and of every cost estimate."""
    weight: Tensor
    """``[..., B, K]``: ``q``, rows sum to 1."""


def dual_terms(problem: DualProblem, eta: Tensor, lam: Tensor, hessian: bool = True) -> DualTerms:
    """Evaluate the E-step's dual, its derivatives and its weights with one exponential per particle.

    With ``z = (Q_r − λᵀ Q_c) / η`` and ``q_bk = p_bk exp(z_bk) / Σ_k p_bk exp(z_bk)``,

        g(η, λ)   = η ε + λᵀ d + η mean_b log Σ_k p_bk exp(z_bk)
        ∂g/∂η     = ε − mean_b KL(q_b ‖ p_b)
        ∂g/∂λ_i   = d_i − mean_b E_q Q_c,i
        ∂²g/∂η²   = mean_b Var_q(z) / η
        ∂²g/∂η∂λ  = mean_b Cov_q(z, Q_c) / η
        ∂²g/∂λ²   = mean_b Cov_q(Q_c, Q_c) / η

    ``g`` is jointly convex for ``η > 0``. It bounds from above the reward of any ``q`` that keeps
    ``mean_b KL <= ε`` and ``mean_b E_q Q_c <= d``.

    Args:
        problem: from :func:`~safe_components.estep.dual_problem`.
        eta: ``[...]``, float64, temperature, positive, in the unit of the reward estimates.
        lam: ``[..., m]``, float64, reward per cost.
        hessian: whether to compute the Hessian.

    Source: CVPO (Liu et al. 2022, arXiv 2201.11927), dual of the E-step; derivatives by differentiation.

    Example:
        >>> from safe_components.estep import dual_problem
        >>> problem = dual_problem(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2, 0), 0.1, torch.zeros(0))
        >>> dual_terms(problem, torch.tensor(1.0).double(), torch.zeros(0).double()).weight
        tensor([[0.2689, 0.7311]], dtype=torch.float64)
    """
    features = problem.features
    states, particles = features.shape[-2:]
    theta = F.pad(-lam, (1, 0), value=1.0) / eta.unsqueeze(-1)
    z = (theta.unsqueeze(-2) @ features.flatten(-2)).view(*features.shape[:-3], states, particles)
    prior = problem.log_prior
    logits = z if prior is None else z + prior
    highest = logits.amax(-1, keepdim=True)
    logits = logits - highest
    weight = logits.exp()
    total = weight.sum(-1, keepdim=True)
    weight = weight.div_(total)
    log_total = total.log_().mean((-2, -1))
    if problem.log_prior is None:
        log_total = log_total - math.log(particles)
    # Moments of z and the costs, not of reward and costs: where η is small, z is a small difference. It is
    # taken below the highest logit, because the digits of a large z would be missing in the divergence.
    z = logits if prior is None else (logits - prior).masked_fill(prior.isneginf(), 0.0)
    x = torch.cat([z.unsqueeze(-3), features[..., 1:, :, :]], dim=-3)
    weights = weight.unsqueeze(-3)
    of_state = (weights * x).sum(-1, keepdim=True)  # [..., 1 + m, B, 1]
    mean = of_state.mean((-2, -1))
    mean_z, mean_cost = mean[..., :1], mean[..., 1:]
    slope = problem.epsilon + log_total
    gradient = torch.cat([slope.unsqueeze(-1) - mean_z, problem.cost_limits - mean_cost], dim=-1)
    value = eta * (slope + highest.mean((-2, -1))) + (lam * problem.cost_limits).sum(-1)
    reward = (weight * features[..., 0, :, :]).sum(-1).mean(-1, keepdim=True)
    expectation = torch.cat([reward, mean_cost], dim=-1)
    if not hessian:
        return DualTerms(value, gradient, mean.new_empty(0), expectation, weight)
    x -= of_state
    hessian_sum = _second_moments(weights, x)
    return DualTerms(value, gradient, hessian_sum / states / eta[..., None, None], expectation, weight)


def _second_moments(weights: Tensor, x: Tensor) -> Tensor:
    """``Σ_bk w_bk x_bk x_bkᵀ [..., n, n]`` of ``x [..., n, B, K]``."""
    # On a GPU a matrix product with so few rows would occupy a single multiprocessor.
    return _summed_products(weights, x) if x.is_cuda else (weights * x).flatten(-2) @ x.flatten(-2).mT


def _summed_products(weights: Tensor, x: Tensor) -> Tensor:
    return ((weights * x).unsqueeze(-3) * x.unsqueeze(-4)).sum((-2, -1))
