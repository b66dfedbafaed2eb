"""Diagonal Gaussian policies squashed into the action bounds, as soft actor-critic uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal

from safe_components import keys
from safe_components.policies.gaussian import _check_bounds

# Scale of the output layer's initial weights: small, so that every state starts at the centre of the range.
_OUTPUT_INIT = 0.01


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
    """A TorchRL actor ``a = c + h tanh(u)``, ``u ~ N(loc(s), diag(scale(s))^2)``.

    ``c`` and ``h`` are the centre and half-range of each action. Made of TorchRL's parts: an ``MLP``
    whose output ``NormalParamExtractor`` splits into ``loc [..., a]`` and ``scale [..., a]``, which describe
    ``u`` and not the action, and the distribution ``TanhNormal``. Actions never leave the bounds;
    log-probabilities are those of ``a``, with the bounds' part in them. The initial policy is nearly the same
    in every state: ``loc = 0``, ``scale = init_std``. Of TorchRL's exploration modes ``RANDOM`` (the
    default) draws, ``DETERMINISTIC`` returns ``c + h tanh(loc)`` and ``MEAN`` an average of draws; a mode
    and a median ``TanhNormal`` does not offer.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        hidden_sizes: width of each hidden layer.
        init_std: initial standard deviation of ``u``; 1 spreads the actions almost evenly.
        min_std: floor of the standard deviation of ``u``, part of the policy class.
        activation: module class between the layers.
        observation_key: entry read, ``[..., o]``.

    Returns:
        An actor that writes ``loc``, ``scale`` and ``action``.

    Raises:
        ValueError: if a bound is infinite or mismatched, a size is below 1, or not
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
    low, high = _check_bounds(action_low, action_high)
    if not 0.0 < min_std < init_std < math.inf:
        raise ValueError(
            f"min_std={min_std} and init_std={init_std} must satisfy 0 < min_std < init_std < inf"
        )
    # NormalParamExtractor's own floor is a clamp, which stops gradients; this mapping has it built in.
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


def mlp(
    observation_dim: int, outputs: int, hidden_sizes: Sequence[int], activation: type[nn.Module]
) -> nn.Module:
    """TorchRL's ``MLP`` whose outputs start near zero, ``[..., o] -> [..., outputs]``."""
    if min((observation_dim, *hidden_sizes)) < 1:
        raise ValueError(
            f"observation_dim={observation_dim} and hidden_sizes={tuple(hidden_sizes)} must be at least 1"
        )
    network = MLP(observation_dim, outputs, num_cells=list(hidden_sizes), activation_class=activation)
    with torch.no_grad():
        network[-1].weight.mul_(_OUTPUT_INIT)
        network[-1].bias.zero_()
    return network
