"""What a dual solver gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DualSolution:
    """The E-step's answer and how far to trust it.

    Leading dimensions ``...`` are those of the independent problems solved at once; there are none for
    one batch of states, and then ``eta`` is ``[]`` and ``lam`` is ``[m]``. Numbers are float64, whatever
    the dtype of the estimates; ``weight`` has the dtype of ``q_reward``.
    """

    weight: Tensor
    """``[..., B, K]``: ``q``, rows sum to 1."""
    eta: Tensor
    """``[...]``: temperature, the price of the KL ball, in the unit of the reward estimates."""
    lam: Tensor
    """``[..., m]``: price of each limit, reward per cost. Where ``recovered``, the recovery problem's
    multipliers instead, which lie in ``[0, 1 / s_i]`` (``s_i`` the spread of cost ``i``)."""
    kl: Tensor
    """``[...]``: ``mean_b KL(q_b || p_b)``, nats."""
    expected_reward: Tensor
    """``[...]``: ``mean_b E_q Q_r``."""
    expected_cost: Tensor
    """``[..., m]``: ``mean_b E_q Q_c``, to be held against the limits."""
    residual: Tensor
    """``[...]``: KKT residual relative to scale, see :func:`~safe_components.estep.kkt_residual`."""
    feasible: Tensor
    """``[...]`` bool: some ``q`` in the KL ball meets every limit."""
    recovered: Tensor
    """``[...]`` bool: infeasible, and ``weight`` minimises the violation rather than maximising reward."""
    converged: Tensor
    """``[...]`` bool: the residual reached the solver's tolerance."""
    eta_at_min: Tensor
    """``[...]`` bool: the temperature's lower bound is active; the KL ball does not bind."""
    lam_clipped: Tensor
    """``[..., m]`` bool: the multiplier stands at its upper bound; the limit may be exceeded."""
    iterations: Tensor
    """``[...]`` int: evaluations of the dual, those that settled the feasibility included."""
