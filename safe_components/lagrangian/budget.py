"""The cost budget: the limit per episode, its schedule, and the limit in Q units that follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safe_components.lagrangian.multipliers import Multiplier
from safe_components.ops import episode_limits, q_cost_limit


class CostBudget(nn.Module):
    """Limits on the ``m`` costs of an episode, and the same limits in the unit of a cost critic.

        d(t) = lerp(start, cost_limit, min(t / decay_frames, 1))        cost per episode
        d_Q  = convert(d(t)) / (1 + λ_feedback)                         discounted cost

    with ``convert`` from :func:`~safe_components.ops.q_cost_limit`, ``t`` the number of frames so far, and
    ``λ_feedback = 0`` without ``feedback``.

    A policy that meets ``d_Q`` according to the critics may still exceed ``d`` in its episodes. The feedback
    multiplier compares the measured cost of episodes with ``d``. It tightens ``d_Q`` while episodes cost
    too much, and never loosens it beyond the conversion of ``d``.

    Args:
        cost_limit: ``d``, cost per episode; one number, or one per cost signal.
        gamma: ``γ``, discount of the cost critic, in ``(0, 1]``.
        episode_length: ``T``, number of decisions (steps after frame skip), at least 1.
        start: first limits ``[m]`` of the schedule; None keeps ``cost_limit`` throughout.
        decay_frames: frames until the schedule reaches ``cost_limit``, at least 1.
        feedback: a multiplier such as `PIDMultiplier`, registered here. The budget sets its limits.

    Attributes:
        cost_limit: ``d(t) [m]``, cost per episode (a buffer, float64).
        q_limit: ``d_Q [m]``, discounted cost (a buffer, float64).

    Both buffers change in place, so every part that holds one sees the current limits, and so does a captured
    CUDA graph. Move the budget to its device before handing them out. A checkpoint holds both buffers and the
    multiplier; the two ends of the schedule come from the constructor.

    Raises:
        ValueError: if a limit is negative or not finite, ``start`` or ``feedback`` has another number of
            costs, or a setting is out of range; in ``observe``, if the costs are not ``[n, m]``, or
            ``frames`` is negative.

    Source: CVPO (Liu et al. 2022, arXiv 2201.11927) for the conversion; the feedback multiplier is the
    controller of Stooke et al. 2020 (arXiv 2007.03964).

    Example:
        >>> budget = CostBudget(25.0, gamma=0.99, episode_length=500, start=[100.0], decay_frames=10_000)
        >>> budget.cost_limit, budget.q_limit
        (tensor([100.], dtype=torch.float64), tensor([19.8686], dtype=torch.float64))
        >>> budget.observe(torch.empty(0, 1), frames=5_000)
        >>> budget.cost_limit
        tensor([62.5000], dtype=torch.float64)
    """

    cost_limit: Tensor
    q_limit: Tensor
    _start: Tensor
    _end: Tensor

    def __init__(
        self,
        cost_limit: float | Sequence[float] | Tensor,
        *,
        gamma: float,
        episode_length: int,
        start: float | Sequence[float] | Tensor | None = None,
        decay_frames: int = 50_000,
        feedback: Multiplier | None = None,
    ) -> None:
        super().__init__()
        end = episode_limits(cost_limit)
        first = end.clone() if start is None else episode_limits(start, "start").to(end.device)
        if first.shape != end.shape:
            raise ValueError(
                f"start={first.tolist()} needs one limit per cost, as cost_limit={end.tolist()} has"
            )
        if not decay_frames >= 1:
            raise ValueError(f"decay_frames={decay_frames} must be at least 1")
        self.gamma, self.episode_length, self.decay_frames = gamma, episode_length, decay_frames
        self.feedback = feedback
        self.register_buffer("_start", first, persistent=False)
        self.register_buffer("_end", end, persistent=False)
        self.register_buffer("cost_limit", first.clone())
        self.register_buffer("q_limit", q_cost_limit(first, gamma, episode_length))
        self.observe(first.new_empty(0, len(first)), frames=0)

    @torch.no_grad()
    def observe(self, episode_costs: Tensor, frames: int) -> None:
        """Move the limits to those after ``frames`` frames, given the episodes that have just ended.

        Args:
            episode_costs: ``[n, m]``, undiscounted costs of ``n >= 0`` episodes.
            frames: ``t``, number of frames so far, at least 0.
        """
        if episode_costs.ndim != 2 or episode_costs.shape[1] != len(self.cost_limit):
            raise ValueError(
                f"episode_costs must be [n, m] = [n, {len(self.cost_limit)}], "
                f"got shape {tuple(episode_costs.shape)}"
            )
        if not frames >= 0:
            raise ValueError(f"frames={frames} must be at least 0")
        self.cost_limit.copy_(torch.lerp(self._start, self._end, min(frames / self.decay_frames, 1.0)))
        q_limit = q_cost_limit(self.cost_limit, self.gamma, self.episode_length)
        if self.feedback is not None:
            self.feedback.set_cost_limits(self.cost_limit)
            if len(episode_costs):
                self.feedback.update(episode_costs.mean(0))
            q_limit = q_limit / (1.0 + self.feedback.lam)
        self.q_limit.copy_(q_limit)
