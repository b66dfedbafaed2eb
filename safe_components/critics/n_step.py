"""n-step returns of reward and cost inside a replay buffer."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl.envs.transforms import MultiStepTransform


def n_step_transform(
    n_steps: int, gamma: float, *, reward_keys: Sequence[str] = ("reward", "cost")
) -> MultiStepTransform:
    """TorchRL's `MultiStepTransform`, set up so that costs are summed and terminations are kept.

        r_t <- sum_{j < n'} γ^j r_{t+j},   s'_t <- s_{t+n'},   flags_t <- flags_{t+n'-1},
        n' = min(n_steps, steps to the end of the episode)

    Left to its defaults the transform sums the reward only, and leaves ``terminated`` at step ``t`` where the
    next observation comes from step ``t + n'``: a window that runs into a terminal state would then be
    bootstrapped from it. Pass the result as ``transform`` of a replay buffer whose last storage dimension
    is time; the last ``n_steps`` steps wait there for the steps that complete them. `TDLoss` reads the
    ``steps_to_next_obs`` written beside and discounts by ``γ^n'``.

    Args:
        n_steps: window, at least 1.
        gamma: discount, in ``(0, 1]``; the same as in `TDLoss`.
        reward_keys: entries under ``"next"`` that are summed, each ``[..., T, m]``.

    Returns:
        The transform.

    Raises:
        ValueError: if ``n_steps`` or ``gamma`` is out of range.

    Source: Sutton 1988, as in Rainbow (Hessel et al. 2018, arXiv 1710.02298), section "Multi-step learning".

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> buffer = ReplayBuffer(
        ...     storage=LazyTensorStorage(10), transform=n_step_transform(2, 0.5, reward_keys=["reward"])
        ... )
        >>> ends = torch.tensor([[False], [False], [True], [False], [False]])
        >>> step = TensorDict(reward=torch.ones(5, 1), done=ends, terminated=ends, batch_size=5)
        >>> indices = buffer.extend(TensorDict(next=step, batch_size=5))
        >>> buffer[:]["next", "reward"].flatten(), buffer[:]["next", "terminated"].flatten()
        (tensor([1.5000, 1.5000, 1.0000]), tensor([False,  True,  True]))
    """
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps} must be at least 1")
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma={gamma} must lie in (0, 1]")
    return MultiStepTransform(n_steps, gamma, reward_keys=list(reward_keys), done_keys=[])
