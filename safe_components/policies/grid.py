"""Categorical policies over a finite set of actions, such as a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import InteractionType, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.modules import MLP, ProbabilisticActor

from safe_components import keys
from safe_components.ops import action_bounds
from safe_components.policies.registry import policy_builder


class GridCategorical(torch.distributions.Categorical):
    """A categorical distribution over ``actions [K, a]``, with log-probabilities ``logits [..., K]``.

    Example:
        >>> GridCategorical(torch.tensor([0.0, 2.0]), torch.tensor([[-1.0], [1.0]])).deterministic_sample
        tensor([1.])
    """

    def __init__(self, logits: Tensor, actions: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)
        self.actions = actions.to(logits.device)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable action ``[..., a]``."""
        return self.actions[self.logits.argmax(-1)]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw actions ``[*sample_shape, ..., a]``."""
        shape = torch.Size(sample_shape)
        index: Tensor = super().sample(shape)  # type: ignore[no-untyped-call]  # PyTorch's own
        return self.actions[index]


def grid_actions(
    action_low: Sequence[float] | Tensor, action_high: Sequence[float] | Tensor, levels: int
) -> Tensor:
    """Return all actions ``[levels ** a, a]`` of a grid that is even in each dimension, bounds included.

    Example:
        >>> grid_actions([-1.0], [1.0], 3).flatten()
        tensor([-1.,  0.,  1.])
    """
    low, high = action_bounds(action_low, action_high)
    if levels < 1:
        raise ValueError(f"levels={levels} must be at least 1")
    values = [torch.linspace(float(a), float(b), levels) for a, b in zip(low, high, strict=True)]
    return torch.tensor(list(itertools.product(*values)))


@policy_builder
def enumerated_policy(
    observation_dim: int,
    action_low: Sequence[float] | Tensor,
    action_high: Sequence[float] | Tensor,
    *,
    actions: Sequence[Sequence[float]] | Tensor,
    hidden_sizes: Sequence[int] = (128, 128),
    observation_key: NestedKey = keys.OBSERVATION,
) -> ProbabilisticActor:
    """Return a TorchRL actor that chooses among the rows of ``actions``.

    The rows may be the one-hot vectors of a discrete space, or any other points. TorchRL's exploration mode
    ``RANDOM`` (the default) draws an action. ``DETERMINISTIC`` returns the most probable action.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds; 0 for one-hot vectors.
        action_high: ``[a]``, finite upper bounds; 1 for one-hot vectors.
        actions: ``[K, a]``, at least one, inside the bounds.
        hidden_sizes: width of each hidden layer.
        observation_key: entry read, ``[..., o]``.

    Returns:
        An actor that writes ``logits [..., K]`` and ``action [..., a]``.

    Raises:
        ValueError: if the bounds are infinite or do not match, or if ``actions`` have another shape or leave
            them.

    Example:
        >>> from tensordict import TensorDict
        >>> policy = enumerated_policy(3, [0.0, 0.0], [1.0, 1.0], actions=torch.eye(2), hidden_sizes=(8,))
        >>> policy(TensorDict({"observation": torch.zeros(4, 3)}, [4]))["action"].sum(-1)
        tensor([1., 1., 1., 1.])
    """
    low, high = action_bounds(action_low, action_high)
    rows = torch.as_tensor(actions, dtype=torch.float32)
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1:] != low.shape:
        raise ValueError(f"actions must be [K, {len(low)}] with K at least 1, got {tuple(rows.shape)}")
    if not bool(((low <= rows) & (rows <= high)).all()):
        raise ValueError(f"actions must lie between {low.tolist()} and {high.tolist()}")
    network = MLP(observation_dim, len(rows), num_cells=list(hidden_sizes))
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=[observation_key], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=GridCategorical,
        distribution_kwargs={"actions": rows},
        default_interaction_type=InteractionType.RANDOM,
    )


@policy_builder
def grid_policy(
    observation_dim: int,
    action_low: Sequence[float] | Tensor,
    action_high: Sequence[float] | Tensor,
    *,
    levels: int = 3,
    hidden_sizes: Sequence[int] = (128, 128),
    observation_key: NestedKey = keys.OBSERVATION,
) -> ProbabilisticActor:
    """Return an `enumerated_policy` that chooses among the actions of a grid.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        levels: number of values of each action dimension, at least 1.
        hidden_sizes: width of each hidden layer.
        observation_key: entry read, ``[..., o]``.

    Returns:
        An actor that writes ``logits [..., levels ** a]`` and ``action [..., a]``.

    Raises:
        ValueError: if the bounds are infinite or do not match, or ``levels`` is below 1.

    Example:
        >>> from tensordict import TensorDict
        >>> policy = grid_policy(3, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
        >>> policy(TensorDict({"observation": torch.zeros(4, 3)}, [4]))["logits"].shape
        torch.Size([4, 9])
    """
    return enumerated_policy(
        observation_dim,
        action_low,
        action_high,
        actions=grid_actions(action_low, action_high, levels),
        hidden_sizes=hidden_sizes,
        observation_key=observation_key,
    )
