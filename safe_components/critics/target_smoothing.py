"""TD3's target policy smoothing: noise on the next action, inside the bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safe_components.ops import action_bounds


class TargetSmoothing(nn.Module):
    """``a' = clip(a + h clip(std ξ, -noise_clip, noise_clip), low, high)``, ``ξ ~ N(0, I)``.

    ``h [a]`` is the half-range of each action. The noise averages the target over actions near the target
    policy's, so that a peak of the critic at a single action is not copied into the policy. Pass an instance
    as ``TDLoss(smooth_action=...)``.

    Args:
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        std: standard deviation of the noise, as a share of half the action range.
        noise_clip: largest magnitude of the noise, as a share of half the action range.

    Raises:
        ValueError: if the bounds are invalid, ``std`` is negative or infinite, or ``noise_clip`` is negative.

    Source: Fujimoto et al. 2018 (arXiv 1802.09477), eq. 14, with its 0.2 and 0.5 on ranges of [-1, 1].

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> smooth = TargetSmoothing([0.0], [4.0])
        >>> moved = smooth(torch.full((1000, 1), 3.5)) - 3.5
        >>> moved.min(), moved.max()  # h noise_clip = 1 below, the bound above
        (tensor(-1.), tensor(0.5000))
    """

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        action_low: Sequence[float] | Tensor,
        action_high: Sequence[float] | Tensor,
        *,
        std: float = 0.2,
        noise_clip: float = 0.5,
    ) -> None:
        super().__init__()
        low, high = action_bounds(action_low, action_high)
        if not (0.0 <= std < float("inf") and noise_clip >= 0.0):
            raise ValueError(f"std={std} and noise_clip={noise_clip} must be at least 0 and std finite")
        self.std, self.noise_clip = std, noise_clip
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)

    def forward(self, action: Tensor) -> Tensor:
        """``action [..., a]`` to the noisy action ``[..., a]``."""
        half_range = (self.action_high - self.action_low) / 2
        noise = (self.std * torch.randn_like(action)).clamp(-self.noise_clip, self.noise_clip)
        return torch.clamp(action + half_range * noise, self.action_low, self.action_high)
