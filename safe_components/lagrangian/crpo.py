"""The rule of CRPO: raise the reward while the costs keep their limits, lower a cost while it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from safe_components.lagrangian.multipliers import Multiplier


class CRPOSwitch(Multiplier):
    """Switch between the reward and the costs, in place of a price.

        λ_i = 1   if i = argmax_j (J_c,j - d_j) / J_c,j  and  J_c,i > d_i + tolerance,     else 0

    The advantage to climb is that of the reward if all ``λ`` are 0, and otherwise minus that of one cost:

        A = (1 - Σ_i λ_i) A_r - Σ_i λ_i A_c,i

    Of several costs over their limits, the one with the largest share over its limit is lowered. The paper
    allows any of them. No multiplier has to be learned, so none can wind up or oscillate, but the policy
    alternates between the two objectives at the limit.

    Args:
        cost_limits: ``d``, cost per episode, one per cost signal.
        tolerance: cost per episode over the limit that does not switch yet, at least 0.

    Attributes:
        lam: ``λ [m]``, zeros and at most one 1 (a buffer, float64).

    Raises:
        ValueError: if an argument is out of range; in ``update``, if the costs are not ``[m]`` or not finite.

    Source: Xu, Liang and Lan 2021, "CRPO: a new approach for safe reinforcement learning with convergence
    guarantee", arXiv 2011.05869, algorithm 1. There the steps are natural gradients; the rule leaves the
    policy's step open.

    Example:
        >>> switch = CRPOSwitch([25.0, 10.0])
        >>> switch.update([30.0, 20.0])  # the second cost is twice its limit
        tensor([0., 1.], dtype=torch.float64)
        >>> switch.update([20.0, 5.0])
        tensor([0., 0.], dtype=torch.float64)
    """

    def __init__(self, cost_limits: float | Sequence[float] | Tensor, tolerance: float = 0.0) -> None:
        super().__init__(cost_limits, init=0.0, max_value=None)
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance={tolerance} must be finite and at least 0")
        self.tolerance = tolerance

    @torch.no_grad()
    def update(self, episode_cost: float | Sequence[float] | Tensor) -> Tensor:
        """Choose the objective by the mean cost ``[m]`` of the latest episodes; returns ``λ [m]``."""
        cost = self._observed(episode_cost)
        over = cost > self.cost_limits + self.tolerance
        share = torch.where(over, (cost - self.cost_limits) / cost.abs(), -torch.inf)
        chosen = torch.zeros_like(cost).index_fill(0, share.argmax(), 1.0)
        return self._set(torch.where(over, chosen, 0.0))
