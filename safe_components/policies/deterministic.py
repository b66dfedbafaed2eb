"""Deterministic policies whose actions lie inside the bounds, for TD3 and DDPG."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn

from safe_components import keys
from safe_components.ops import action_bounds
from safe_components.policies.mlp import mlp
from safe_components.policies.registry import policy_builder


class TanhBounds(nn.Module):
    """Squash any number into the action bounds: ``a = c + h tanh(u)``.

    ``c`` is the center of each action's range, ``h`` is half of the range, and ``u [..., a]`` is unbounded.

    Args:
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.

    Raises:
        ValueError: if the bounds are infinite or do not match.

    Example:
        >>> import torch
        >>> TanhBounds([0.0], [4.0])(torch.tensor([[-100.0], [0.0], [100.0]])).flatten()
        tensor([0., 2., 4.])
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, action_low: Sequence[float] | Tensor, action_high: Sequence[float] | Tensor) -> None:
        super().__init__()
        low, high = action_bounds(action_low, action_high)
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, raw: Tensor) -> Tensor:
        """Map ``u [..., a]`` to ``a [..., a]``."""
        return self.center + self.half_range * raw.tanh()


@policy_builder
def deterministic_policy(
    observation_dim: int,
    action_low: Sequence[float] | Tensor,
    action_high: Sequence[float] | Tensor,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    activation: type[nn.Module] = nn.ReLU,
    observation_key: NestedKey = keys.OBSERVATION,
) -> TensorDictModule:
    """Return an actor ``a = c + h tanh(u(s))``, with ``c`` and ``h`` as in ``TanhBounds``.

    It starts near the center in every state. It does not explore: put a module such as TorchRL's
    ``AdditiveGaussianModule`` behind it for that.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        hidden_sizes: width of each hidden layer.
        activation: module class between the layers.
        observation_key: entry read, ``[..., o]``.

    Returns:
        A module that writes ``action [..., a]``.

    Raises:
        ValueError: if the bounds are infinite or do not match, or a size is below 1.

    Source: Lillicrap et al. 2016 (arXiv 1509.02971), section 7.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> _ = torch.manual_seed(0)
        >>> policy = deterministic_policy(3, [-1.0, 0.0], [1.0, 4.0], hidden_sizes=(8,))
        >>> policy(TensorDict({"observation": torch.zeros(5, 3)}, [5]))["action"].shape
        torch.Size([5, 2])
    """
    bounds = TanhBounds(action_low, action_high)
    network = mlp(observation_dim, bounds.center.shape[0], hidden_sizes, activation)
    return TensorDictModule(nn.Sequential(network, bounds), in_keys=[observation_key], out_keys=[keys.ACTION])
