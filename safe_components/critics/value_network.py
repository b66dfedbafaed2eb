"""A state-value network whose outputs are in units of their task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrl.modules import MLP


class ValueNetwork(nn.Module):
    """A multilayer perceptron that estimates values ``[..., n]`` of an observation, in units of the task.

        V_i(s) = u_i f_i(s)

    ``f`` is TorchRL's ``MLP`` with hyperbolic tangents. Learn from ``(V - target) / unit``. Rewards times
    1,000 with a unit times 1,000 then give the same course of training.

    Args:
        observation_dim: size of an observation.
        num_values: ``n``.
        hidden_sizes: widths of the hidden layers.

    Attributes:
        unit: ``u [n]``, a buffer of ones at first.

    Example:
        >>> value = ValueNetwork(3, 2)
        >>> before = value(torch.ones(5, 3))
        >>> value.set_unit(torch.tensor([10.0, 1.0]))
        >>> (value(torch.ones(5, 3)) / before).mean(0)
        tensor([10.,  1.], grad_fn=<MeanBackward1>)
    """

    unit: Tensor

    def __init__(
        self, observation_dim: int, num_values: int, hidden_sizes: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        self.network = MLP(
            observation_dim, num_values, num_cells=list(hidden_sizes), activation_class=nn.Tanh
        )
        self.register_buffer("unit", torch.ones(num_values))

    def set_unit(self, unit: Tensor) -> None:
        """Set the unit ``[n]`` before any update; `safe_components.training.value_units` estimates it.

        Raises:
            ValueError: if it has another shape, or if a number is not positive and finite.
        """
        if unit.shape != self.unit.shape:
            raise ValueError(f"unit={unit.tolist()} must hold {len(self.unit)} numbers")
        if not bool(((unit > 0) & unit.isfinite()).all()):
            raise ValueError(f"unit={unit.tolist()} must be positive and finite")
        self.unit.copy_(unit)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the values ``[..., n]`` of observations ``[..., o]``."""
        value: Tensor = self.network(observation) * self.unit
        return value
