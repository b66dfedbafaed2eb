"""The E-step's dual function: value, gradient, Hessian and the weights it stands for."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class DualProblem(NamedTuple):
    """What the dual is a function of; leading dimensions ``...`` hold independent problems."""

    features: Tensor
    """``[..., 1 + m, B, K]``: the reward estimate, then the ``m`` cost estimates."""
    log_prior: Tensor | None
    """``[..., B, K]``, normalised over ``K``; ``None`` is the uniform ``-log K``."""
    epsilon: Tensor
    """``[]`` or ``[...]``: bound on the mean divergence, nats."""
    cost_limits: Tensor
    """``[..., m]``: limits in the unit of the cost estimates."""


class DualTerms(NamedTuple):
    """The dual and its derivatives at one point, with the expectations they are made of."""

    value: Tensor
    """``[...]``, in the unit of the reward estimates."""
    gradient: Tensor
    """``[..., 1 + m]``: ``(epsilon - KL, d - E_q Q_c)``, the slack of each constraint."""
    hessian: Tensor
    """``[..., 1 + m, 1 + m]``, positive semidefinite; no elements if not asked for."""
    expectation: Tensor
    """``[..., 1 + m]``: ``mean_b E_q`` of the reward and of every cost estimate."""
    weight: Tensor
    """``[..., B, K]``: ``q``, rows sum to 1."""


def dual_problem(
    q_reward: Tensor,
    q_cost: Tensor,
    epsilon: float | Tensor,
    cost_limits: float | Tensor,
    log_prior: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> DualProblem:
    """Arrange an E-step for evaluation.

    Args:
        q_reward: ``[..., B, K]``, discounted reward of each particle.
        q_cost: ``[..., B, K, m]``, discounted costs; ``m = 0`` is an E-step without constraint (MPO).
        epsilon: bound on ``mean_b KL(q_b || p_b)``, nats.
        cost_limits: ``[..., m]``, in the unit of ``q_cost``.
        log_prior: ``[..., B, K]``, log-probabilities of the actions, normalised here over ``K``; ``-inf``
            excludes an action, whose estimates are then never looked at. ``None`` means uniform.
        dtype: of the problem; ``None`` is that of the estimates.

    Example:
        >>> problem = dual_problem(torch.zeros(5, 4), torch.zeros(5, 4, 2), 0.1, torch.ones(2))
        >>> problem.features.shape
        torch.Size([3, 5, 4])
    """
    features = torch.cat([q_reward.unsqueeze(-3), q_cost.movedim(-1, -3)], dim=-3)
    features = features if dtype is None else features.to(dtype)
    if log_prior is not None:
        log_prior = log_prior.to(features.dtype).log_softmax(-1)
        features = torch.where(log_prior.isneginf().unsqueeze(-3), 0.0, features)
    epsilon = torch.as_tensor(epsilon, dtype=features.dtype, device=features.device)
    limits = torch.as_tensor(cost_limits, dtype=features.dtype, device=features.device)
    return DualProblem(features.contiguous(), log_prior, epsilon, limits)


def dual_terms(problem: DualProblem, eta: Tensor, lam: Tensor, hessian: bool = True) -> DualTerms:
    """Dual of the E-step, its derivatives and its weights, from one exponential per particle.

    With ``z = (Q_r - lam^T Q_c) / eta`` and ``q_bk = p_bk exp(z_bk) / sum_k p_bk exp(z_bk)``,

        g(eta, lam)      = eta epsilon + lam^T d + eta mean_b log sum_k p_bk exp(z_bk)
        dg/d eta         = epsilon - mean_b KL(q_b || p_b)
        dg/d lam_i       = d_i - mean_b E_q Q_c,i
        d2g/d eta d eta  = mean_b Var_q(z) / eta
        d2g/d eta d lam  = mean_b Cov_q(z, Q_c) / eta
        d2g/d lam d lam  = mean_b Cov_q(Q_c, Q_c) / eta

    ``g`` is jointly convex for ``eta > 0`` and bounds from above what any ``q`` can reach that keeps
    ``mean_b KL <= epsilon`` and ``mean_b E_q Q_c <= d``.

    Args:
        problem: from :func:`dual_problem`.
        eta: ``[...]``, temperature, positive, in the unit of the reward estimates.
        lam: ``[..., m]``, reward per cost.
        hessian: leave out the Hessian when ``False``.

    Source: CVPO (Liu et al. 2022, arXiv 2201.11927), dual of the E-step; derivatives by differentiation.

    Example:
        >>> q_reward = torch.tensor([[0.0, 1.0]])
        >>> problem = dual_problem(q_reward, torch.zeros(1, 2, 0), 0.1, torch.zeros(0))
        >>> terms = dual_terms(problem, torch.tensor(1.0), torch.zeros(0))
        >>> terms.weight
        tensor([[0.2689, 0.7311]])
    """
    theta = F.pad(-lam, (1, 0), value=1.0) / eta.unsqueeze(-1)
    return assemble_terms(problem, dual_moments(problem, theta, covariance=hessian), eta, lam)


class DualMoments(NamedTuple):
    """What one pass over the particles finds; ``x = (z, Q_c,1, ..., Q_c,m)``."""

    log_partition: Tensor
    """``[...]``: ``mean_b log sum_k p_bk exp(z_bk)``."""
    mean: Tensor
    """``[..., 1 + m]``: ``mean_b E_q x``."""
    covariance: Tensor
    """``[..., 1 + m, 1 + m]``: ``mean_b Cov_q(x, x)``; no elements if not asked for."""
    weight: Tensor
    """``[..., B, K]``: ``q``."""


def dual_moments(problem: DualProblem, theta: Tensor, covariance: bool = True) -> DualMoments:
    """The sums behind :func:`dual_terms`, with ``theta [..., 1 + m] = (1, -lam) / eta``.

    Example:
        >>> problem = dual_problem(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2, 0), 0.1, torch.zeros(0))
        >>> dual_moments(problem, torch.ones(1)).mean
        tensor([0.7311])
    """
    features = problem.features
    states, particles = features.shape[-2:]
    z = (theta.unsqueeze(-2) @ features.flatten(-2)).unflatten(-1, (states, particles))
    # Of z and the costs, not of reward and costs: where eta is small, z is a small difference.
    x = torch.cat([z, features[..., 1:, :, :]], dim=-3)
    logits = z.squeeze(-3) if problem.log_prior is None else z.squeeze(-3) + problem.log_prior
    highest = logits.amax(-1, keepdim=True)
    weight = (logits - highest).exp_()
    total = weight.sum(-1, keepdim=True)
    weight = weight.div_(total)
    log_partition = total.log_().add_(highest).mean((-2, -1))
    if problem.log_prior is None:
        log_partition = log_partition - math.log(particles)
    weights = weight.unsqueeze(-3)
    of_state = (weights * x).sum(-1, keepdim=True)  # [..., 1 + m, B, 1]
    mean = of_state.mean((-2, -1))
    if not covariance:
        return DualMoments(log_partition, mean, mean.new_empty(0), weight)
    x -= of_state
    return DualMoments(log_partition, mean, _second_moments(weights, x) / states, weight)


def _second_moments(weights: Tensor, x: Tensor) -> Tensor:
    """``sum_bk q_bk x_bk x_bk^T [..., 1 + m, 1 + m]``, from ``weights [..., 1, B, K]``."""
    if x.is_cuda:
        return _summed_products(weights, x)
    return (weights * x).flatten(-2) @ x.flatten(-2).mT


def _summed_products(weights: Tensor, x: Tensor) -> Tensor:
    """The second moments for a GPU, which would run a product with this few rows on one multiprocessor."""
    return ((weights * x).unsqueeze(-3) * x.unsqueeze(-4)).sum((-2, -1))


def assemble_terms(problem: DualProblem, moments: DualMoments, eta: Tensor, lam: Tensor) -> DualTerms:
    """The dual and its derivatives from the moments at ``(eta, lam)``."""
    mean_z, mean_cost = moments.mean[..., :1], moments.mean[..., 1:]
    room = problem.epsilon + moments.log_partition
    gradient = torch.cat([room.unsqueeze(-1) - mean_z, problem.cost_limits - mean_cost], dim=-1)
    value = eta * room + (lam * problem.cost_limits).sum(-1)
    reward = eta.unsqueeze(-1) * mean_z + (lam * mean_cost).sum(-1, keepdim=True)
    expectation = torch.cat([reward, mean_cost], dim=-1)
    hessian = moments.covariance
    if hessian.numel():
        hessian = hessian / eta[..., None, None]
    return DualTerms(value, gradient, hessian, expectation, moments.weight)


def dual_value(
    q_reward: Tensor,
    q_cost: Tensor,
    eta: Tensor,
    lam: Tensor,
    epsilon: float | Tensor,
    cost_limits: float | Tensor,
    log_prior: Tensor | None = None,
) -> Tensor:
    """``g(eta, lam) = eta epsilon + lam^T d + eta mean_b log sum_k p_bk exp((Q_r - lam^T Q_c)[b, k] / eta)``.

    Arguments and shapes are those of :func:`dual_problem` and :func:`dual_terms`. Returns ``[...]``.

    Example:
        >>> q = torch.zeros(3, 4)
        >>> dual_value(q, q.unsqueeze(-1), torch.tensor(2.0), torch.ones(1), 0.1, torch.ones(1))
        tensor(1.2000)
    """
    problem = dual_problem(q_reward, q_cost, epsilon, cost_limits, log_prior)
    return dual_terms(problem, eta, lam, hessian=False).value


def dual_weight(
    q_reward: Tensor, q_cost: Tensor, eta: Tensor, lam: Tensor, log_prior: Tensor | None = None
) -> Tensor:
    """``q_bk = p_bk exp((Q_r - lam^T Q_c)[b, k] / eta)``, normalised over ``k``.

    Arguments and shapes are those of :func:`dual_problem` and :func:`dual_terms`. Returns ``[..., B, K]``.

    Example:
        >>> q = torch.tensor([[0.0, 1.0]])
        >>> dual_weight(q, q.unsqueeze(-1), torch.tensor(0.5), torch.ones(1))
        tensor([[0.5000, 0.5000]])
    """
    problem = dual_problem(q_reward, q_cost, 0.0, torch.zeros_like(lam), log_prior)
    return dual_terms(problem, eta, lam, hessian=False).weight
