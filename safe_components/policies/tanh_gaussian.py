"""Diagonal Gaussian policies squashed into the action bounds, for soft actor-critic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal

from safe_components import keys
from safe_components.ops import action_bounds
from safe_components.policies.mlp import mlp
from safe_components.policies.registry import policy_builder


@policy_builder
def tanh_gaussian_policy(
    observation_dim: int,
    action_low: Sequence[float] | Tensor,
    action_high: Sequence[float] | Tensor,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    init_std: float = 1.0,
    min_std: float = 0.01,
    activation: type[nn.Module] = nn.ReLU,
    observation_key: NestedKey = keys.OBSERVATION,
) -> ProbabilisticActor:
    """Return a TorchRL actor ``a = c + h tanh(u)``, ``u ~ N(loc(s), diag(scale(s))²)``.

    ``c`` is the center of each action's range and ``h`` is half of the range. TorchRL's
    ``NormalParamExtractor`` splits the network's output into ``loc [..., a]`` and ``scale [..., a]``. Both
    describe ``u``, not the action. The distribution is TorchRL's ``TanhNormal``, so actions never leave the
    bounds and log-probabilities are those of ``a``. The initial policy is nearly the same in every state:
    ``loc = 0``, ``scale = init_std``.

    TorchRL's exploration mode ``RANDOM`` (the default) draws an action. ``DETERMINISTIC`` returns
    ``c + h tanh(loc)``, and ``MEAN`` returns an average of draws. ``TanhNormal`` has no mode or median.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        hidden_sizes: width of each hidden layer.
        init_std: initial standard deviation of ``u``; 1 spreads the actions almost evenly over their range.
        min_std: floor of the standard deviation of ``u``, built into the network.
        activation: module class between the layers.
        observation_key: entry read, ``[..., o]``.

    Returns:
        An actor that writes ``loc``, ``scale`` and ``action``.

    Raises:
        ValueError: if the bounds are infinite or do not match, if a size is below 1, or unless
            ``0 < min_std < init_std``.

    Source: Haarnoja et al. 2018 (arXiv 1801.01290), appendix C.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> _ = torch.manual_seed(0)
        >>> policy = tanh_gaussian_policy(3, [-1.0, 0.0], [1.0, 4.0], hidden_sizes=(8,))
        >>> dist = policy.get_dist(TensorDict({"observation": torch.zeros(5, 3)}, [5]))
        >>> dist.rsample().shape
        torch.Size([5, 2])
    """
    low, high = action_bounds(action_low, action_high)
    if not 0.0 < min_std < init_std < math.inf:
        raise ValueError(
            f"min_std={min_std} and init_std={init_std} must satisfy 0 < min_std < init_std < inf"
        )
    # NormalParamExtractor's own floor is a clamp, which stops gradients. This mapping includes the floor.
    extractor = NormalParamExtractor(f"biased_softplus_{init_std}_{min_std}", scale_lb=min_std)
    network = nn.Sequential(mlp(observation_dim, 2 * low.shape[0], hidden_sizes, activation), extractor)
    unit = bool((low == -1.0).all()) and bool((high == 1.0).all())
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=[observation_key], out_keys=[keys.LOC, "scale"]),
        in_keys=[keys.LOC, "scale"],
        out_keys=[keys.ACTION],
        distribution_class=TanhNormal,
        distribution_kwargs={} if unit else {"low": low, "high": high},
        default_interaction_type=InteractionType.RANDOM,
    )
