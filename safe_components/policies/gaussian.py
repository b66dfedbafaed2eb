"""Gaussian policies with full or diagonal covariance, their mean kept inside the action bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from tensordict.nn import InteractionType, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import ProbabilisticActor

from safe_components import keys
from safe_components.policies.distribution import CholeskyNormal

Covariance = Literal["full", "diagonal"]
# Scale of the output layer's initial weights: small, so that every state starts at the centre of the range.
_OUTPUT_INIT = 0.01


class GaussianNet(nn.Module):
    """Network of a policy ``N(loc(s), L(s) L(s)^T)`` on a bounded action space.

    With centre ``c`` and half-range ``h`` of each action, and the network's raw outputs ``u`` (for the mean),
    ``v`` (for the diagonal) and ``w`` (below the diagonal),

        loc_i = c_i + h_i tanh(u_i)
        L_ii  = h_i (min_std + softplus(v_i + const))        const such that v = 0 gives init_std
        L_ij  = h_i w_ij  for j < i                          zero for a diagonal covariance

    so ``loc`` never leaves the bounds and no standard deviation, of an action alone or given the actions
    before it, falls under ``min_std * h_i``. That floor is part of the policy class; nothing else is clamped.
    The initial policy is nearly the same in every state: mean at the centre, covariance
    ``diag(init_std * h)^2``.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds, above the lower ones.
        covariance: ``"full"`` or ``"diagonal"``.
        hidden_sizes: width of each hidden layer.
        init_std: initial standard deviation, as a share of half the action range.
        min_std: floor of the standard deviation, as a share of half the action range; below ``init_std``.
        activation: module class between the layers.

    Raises:
        ValueError: if a bound is infinite or mismatched, a size is below 1, or not
            ``0 < min_std < init_std``.

    Source: the full-covariance policy of MPO (Abdolmaleki et al. 2018, arXiv 1806.06920), with the
    mean squashed into the bounds as in CVPO (Liu et al. 2022, arXiv 2201.11927).

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = GaussianNet(3, [-1.0, 0.0], [1.0, 4.0], init_std=0.5)
        >>> loc, scale_tril = net(torch.zeros(5, 3))
        >>> loc.shape, scale_tril.shape
        (torch.Size([5, 2]), torch.Size([5, 2, 2]))
        >>> net.std_floor  # in the unit of the action
        tensor([0.0100, 0.0200])
    """

    center: Tensor
    half_range: Tensor
    _entry: Tensor
    _floor: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_low: Sequence[float] | Tensor,
        action_high: Sequence[float] | Tensor,
        *,
        covariance: Covariance = "full",
        hidden_sizes: Sequence[int] = (256, 256),
        init_std: float = 0.5,
        min_std: float = 0.01,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        low, high = _check_bounds(action_low, action_high)
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance={covariance!r} is not one of {', '.join(get_args(Covariance))}")
        if not 0.0 < min_std < init_std < math.inf:
            raise ValueError(
                f"min_std={min_std} and init_std={init_std} must satisfy 0 < min_std < init_std < inf "
                "(shares of half the action range)"
            )
        if min((observation_dim, *hidden_sizes)) < 1:
            raise ValueError(
                f"observation_dim={observation_dim} and hidden_sizes={tuple(hidden_sizes)} must be at least 1"
            )
        n = low.shape[0]
        self.action_dim, self.min_std, self.init_std, self.covariance = n, min_std, init_std, covariance
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)
        # A product puts the list [diagonal, below the diagonal] in its places, scaled: zeros add nothing, and
        # both directions of it are one operation.
        places = [(i, i) for i in range(n)]
        places += torch.tril_indices(n, n, offset=-1).T.tolist() if covariance == "full" else []
        entry = torch.zeros(len(places), n, n)
        for k, (i, j) in enumerate(places):
            entry[k, i, j] = 1.0
        rows = self.half_range.unsqueeze(-1)
        self.register_buffer("_entry", (rows * entry).flatten(1))
        self.register_buffer("_floor", (rows * min_std * torch.eye(n)).flatten())
        # softplus(v + const) = init_std - min_std at v = 0
        self._shift = math.log(math.expm1(init_std - min_std))

        sizes = [observation_dim, *hidden_sizes]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(sizes):
            # In place: a linear layer's gradient does not ask for its result.
            act = nn.ReLU(inplace=True) if activation is nn.ReLU else activation()
            layers += [nn.Linear(width_in, width_out), act]
        output = nn.Linear(sizes[-1], n + len(places))
        with torch.no_grad():
            output.weight.mul_(_OUTPUT_INIT)
            output.bias.zero_()
        self.net = nn.Sequential(*layers, output)

    @property
    def std_floor(self) -> Tensor:
        """``[a]``: the smallest standard deviation the policy can express, in the unit of the action."""
        return self.min_std * self.half_range

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """``observation [..., o]`` to ``(loc [..., a], scale_tril [..., a, a])``."""
        n = self.action_dim
        raw = self.net(observation.reshape(-1, observation.shape[-1]))
        loc = torch.addcmul(self.center, self.half_range, torch.tanh(raw[:, :n]))
        diagonal = F.softplus(raw[:, n : 2 * n] + self._shift)
        entries = diagonal if self.covariance == "diagonal" else torch.cat([diagonal, raw[:, 2 * n :]], -1)
        scale_tril = torch.addmm(self._floor, entries, self._entry)
        lead = observation.shape[:-1]
        return loc.view(*lead, n), scale_tril.view(*lead, n, n)


def gaussian_policy(
    observation_dim: int,
    action_low: Sequence[float] | Tensor,
    action_high: Sequence[float] | Tensor,
    *,
    covariance: Covariance = "full",
    hidden_sizes: Sequence[int] = (256, 256),
    init_std: float = 0.5,
    min_std: float = 0.01,
    activation: type[nn.Module] = nn.ReLU,
    observation_key: NestedKey = keys.OBSERVATION,
) -> ProbabilisticActor:
    """A TorchRL actor ``a ~ N(loc(s), L(s) L(s)^T)``; reads the observation, writes loc, scale_tril, action.

    Samples are *not* clipped: the density stays that of a Gaussian, which the M-step's likelihoods and
    divergences are about. A sample may lie outside the bounds; environments execute the nearest action
    inside, and critics given the bounds score that one. Of TorchRL's exploration modes ``RANDOM`` (the
    default) draws; all the others return the mean, which lies inside.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        covariance: ``"full"`` or ``"diagonal"``.
        hidden_sizes: width of each hidden layer.
        init_std: initial standard deviation, as a share of half the action range.
        min_std: floor of the standard deviation, as a share of half the action range.
        activation: module class between the layers.
        observation_key: entry read, ``[..., o]``.

    Returns:
        A `ProbabilisticTensorDictSequential` whose network is a `GaussianNet` (formula there).

    Raises:
        ValueError: as `GaussianNet`.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> _ = torch.manual_seed(0)
        >>> policy = gaussian_policy(3, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
        >>> data = policy(TensorDict({"observation": torch.zeros(4, 3)}, [4]))
        >>> data["action"].shape, data["scale_tril"].shape
        (torch.Size([4, 2]), torch.Size([4, 2, 2]))
    """
    net = GaussianNet(
        observation_dim,
        action_low,
        action_high,
        covariance=covariance,
        hidden_sizes=hidden_sizes,
        init_std=init_std,
        min_std=min_std,
        activation=activation,
    )
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=[observation_key], out_keys=[keys.LOC, keys.SCALE_TRIL]),
        in_keys=[keys.LOC, keys.SCALE_TRIL],
        out_keys=[keys.ACTION],
        distribution_class=CholeskyNormal,
        default_interaction_type=InteractionType.RANDOM,
    )


def _check_bounds(
    action_low: Sequence[float] | Tensor, action_high: Sequence[float] | Tensor
) -> tuple[Tensor, Tensor]:
    dtype = torch.get_default_dtype()
    low, high = torch.as_tensor(action_low, dtype=dtype), torch.as_tensor(action_high, dtype=dtype)
    if low.ndim != 1 or low.shape != high.shape or low.numel() == 0:
        raise ValueError(
            f"action_low and action_high must both be [a] with a >= 1, got {tuple(low.shape)} and "
            f"{tuple(high.shape)}; of batched environments pass the bounds of one"
        )
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
        raise ValueError(
            f"action bounds must be finite with low < high, got low={low.tolist()} and high={high.tolist()}; "
            "rescale or bound the action space first"
        )
    return low.clone(), high.clone()
