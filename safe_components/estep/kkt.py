"""How far a point is from solving the E-step."""

from __future__ import annotations

import torch
from torch import Tensor


def kkt_residual(gradient: Tensor, point: Tensor, lower: Tensor, upper: Tensor, epsilon: Tensor) -> Tensor:
    """Largest violation of the optimality conditions, relative to scale.

    In units of the spreads ``s`` (the root of the mean variance within a state, under the prior) of the
    reward and the costs, the residual is the largest of

        (KL - epsilon)_+ / min(1, epsilon)                             the ball is left
        (E_q Q_c,i - d_i)_+ / s_i                                      a limit is exceeded
        (eta - eta_min) (epsilon - KL)_+ / s_r                         the ball is priced but does not bind
        lam_i (d_i - E_q Q_c,i)_+ / s_r                                a limit is priced but does not bind

    (stationarity of the Lagrangian holds exactly by construction of ``q``). Where a multiplier nears its
    upper bound ``u``, the second line counts with ``min(1, u_i - lam_i)``: a limit whose price may not
    rise any further may be exceeded at the optimum. The sum of the last two lines is the duality gap.

    Args:
        gradient: ``[..., 1 + m]``, of the scaled dual.
        point: ``[..., 1 + m]``, scaled ``(eta, lam)``; ``lower`` and ``upper`` are its bounds.
        lower: ``[..., 1 + m]``.
        upper: ``[..., 1 + m]``.
        epsilon: ``[]`` or ``[...]``.

    Returns:
        ``[...]``, 0 at a solution.
    """
    factor = torch.where(gradient > 0, point - lower, (point - upper).clamp_min(-1.0))
    terms = gradient * factor
    ball = -gradient[..., 0] / epsilon
    return torch.maximum(ball, terms.amax(-1))
