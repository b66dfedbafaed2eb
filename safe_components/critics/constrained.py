"""Reward and cost critics as one ensemble, so that one product a layer serves both."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from safe_components.critics.q_ensemble import QEnsemble


class ConstrainedQEnsemble(QEnsemble):
    """The critics of a constrained problem: the first members score the reward, the others the ``m`` costs.

    A call returns ``[E_r + E_c, ..., m]``. Of the reward's members only the first output means anything;
    `split` leaves the others out, and `ConstrainedTDLoss` never trains them. The members are as independent
    as those of two ensembles; they only share the products, one a layer in place of two.

    Args:
        obs_dim: ``o``.
        action_dim: ``a``.
        num_reward_members: ``E_r``, at least 1.
        num_cost_members: ``E_c``, at least 1.
        num_costs: ``m``, at least 1.
        kwargs: further arguments of `QEnsemble`.

    Raises:
        ValueError: if a size is below 1, or the bounds do not match.

    Example:
        >>> import torch
        >>> critic = ConstrainedQEnsemble(3, 2, num_reward_members=2, num_cost_members=1, num_costs=4)
        >>> reward, cost = critic.split(critic(torch.randn(5, 3), torch.randn(5, 64, 2)))
        >>> reward.shape, cost.shape
        (torch.Size([2, 5, 64, 1]), torch.Size([1, 5, 64, 4]))
        >>> critic.reward()(torch.randn(5, 3), torch.randn(5, 2)).shape  # those members alone
        torch.Size([2, 5, 1])
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_reward_members: int,
        num_cost_members: int,
        num_costs: int = 1,
        **kwargs: Any,
    ) -> None:
        for name, size in (
            ("num_reward_members", num_reward_members),
            ("num_cost_members", num_cost_members),
        ):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        super().__init__(obs_dim, action_dim, num_reward_members + num_cost_members, num_costs, **kwargs)
        self.num_reward_members = num_reward_members

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """``[E_r, ..., 1]`` and ``[E_c, ..., m]`` of what a call returned."""
        return value[: self.num_reward_members, ..., :1], value[self.num_reward_members :]

    def join(self, reward: Tensor, cost: Tensor, value: Tensor) -> Tensor:
        """``[..., 1]`` and ``[..., m]`` in the shape of ``value``, which a call returned.

        Outputs that mean nothing are those of ``value``: as a target they give no error and no gradient.
        """
        joined = value.detach().clone()
        joined[: self.num_reward_members, ..., :1] = reward
        joined[self.num_reward_members :] = cost
        return joined

    def reward(self) -> nn.Module:
        """The reward's members as a critic of its own, on the same parameters: ``[E_r, ..., (K,) 1]``."""
        return _Members(self, slice(0, self.num_reward_members), 1)

    def cost(self) -> nn.Module:
        """The costs' members likewise: ``[E_c, ..., (K,) m]``."""
        return _Members(self, slice(self.num_reward_members, None), self.num_outputs)


class _Members(nn.Module):
    """Some members of an ensemble."""

    def __init__(self, ensemble: QEnsemble, members: slice, num_outputs: int) -> None:
        super().__init__()
        self.ensemble, self._members, self._num_outputs = ensemble, members, num_outputs

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.ensemble(observation, action, self._members)
        return value[..., : self._num_outputs]
