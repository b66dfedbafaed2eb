"""Distance of a point from the solution of an E-step."""

from __future__ import annotations

import torch
from torch import Tensor


def kkt_residual(gradient: Tensor, point: Tensor, lower: Tensor, upper: Tensor, epsilon: Tensor) -> Tensor:
    """Return the largest violation of the optimality conditions, relative to scale.

    In units of the spreads ``s`` (the root of the mean variance within a state, under the prior) of the
    reward and the costs, the residual is the largest of

        (KL − ε)₊ / min(1, ε)              the divergence exceeds the ball
        (E_q Q_c,i − d_i)₊ / s_i           a limit is exceeded
        (η − η_min) (ε − KL)₊ / s_r        the ball is priced but does not bind
        λ_i (d_i − E_q Q_c,i)₊ / s_r       a limit is priced but does not bind

    (stationarity of the Lagrangian holds exactly by construction of ``q``). Near the upper bound ``u`` of a
    multiplier, the second line counts with the factor ``min(1, (u_i − λ_i) / min(u_i, 1))``: where a price
    cannot rise any further, the optimum may exceed its limit. The sum of the last two lines is the duality
    gap.

    Args:
        gradient: ``[..., 1 + m]``, of the scaled dual.
        point: ``[..., 1 + m]``, scaled ``(η, λ)``.
        lower: ``[..., 1 + m]``, lower bounds of ``point``.
        upper: ``[..., 1 + m]``, upper bounds of ``point``.
        epsilon: ``[]`` or ``[...]``, nats.

    Returns:
        ``[...]``, 0 at a solution.

    Example:
        >>> slack, point = torch.tensor([0.0, -0.1]), torch.tensor([1.0, 2.0])
        >>> kkt_residual(slack, point, torch.zeros(2), torch.tensor([torch.inf, 5.0]), torch.tensor(0.2))
        tensor(0.1000)
    """
    # A bound of 0, that of a cost which no q can move, leaves no room.
    room = ((upper - point) / upper.clamp(1e-300, 1.0)).clamp_max(1.0)
    terms = gradient * torch.where(gradient > 0, point - lower, -room)
    ball = -gradient[..., 0] / epsilon
    return torch.maximum(ball, terms.amax(-1))
