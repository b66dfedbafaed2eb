"""The network that every policy uses: an MLP whose outputs start near zero."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

# Scale of the output layer's initial weights. It is small, so the policy starts nearly equal in every state.
OUTPUT_INIT = 0.01


def mlp(
    observation_dim: int, outputs: int, hidden_sizes: Sequence[int], activation: type[nn.Module]
) -> nn.Sequential:
    """Return a network ``[..., o] -> [..., outputs]`` whose outputs start near zero.

    Args:
        observation_dim: ``o``.
        outputs: size of the output layer.
        hidden_sizes: width of each hidden layer.
        activation: module class between the layers.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> [type(layer).__name__ for layer in mlp(3, 2, (8,), nn.Tanh)]
        ['Linear', 'Tanh', 'Linear']
    """
    if min((observation_dim, *hidden_sizes)) < 1:
        raise ValueError(
            f"observation_dim={observation_dim} and hidden_sizes={tuple(hidden_sizes)} must be at least 1"
        )
    layers: list[nn.Module] = []
    for sizes in itertools.pairwise((observation_dim, *hidden_sizes)):
        # In place, because the gradient of a linear layer does not need its output.
        layers += [nn.Linear(*sizes), nn.ReLU(inplace=True) if activation is nn.ReLU else activation()]
    output = nn.Linear((observation_dim, *hidden_sizes)[-1], outputs)
    with torch.no_grad():
        output.weight.mul_(OUTPUT_INIT)
        output.bias.zero_()
    return nn.Sequential(*layers, output)
