"""Gaussian policies with full or diagonal covariance, whose mean stays inside the action bounds."""

from __future__ import annotations

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
from safe_components.ops import Squash, action_bounds
from safe_components.policies.distribution import CholeskyNormal
from safe_components.policies.mlp import mlp
from safe_components.policies.registry import policy_builder
from safe_components.policies.squashed_normal import SquashedNormal

Covariance = Literal["full", "diagonal"]


class GaussianNet(nn.Module):
    """Network of a policy ``N(loc(s), L(s) L(s)ᵀ)`` on a bounded action space.

    Let ``c`` be the center of each action's range and ``h`` half of the range. The network's raw outputs are
    ``u`` (for the mean), ``v`` (for the diagonal) and ``w`` (below the diagonal):

        loc_i = c_i + h_i tanh(u_i)
        L_ii  = h_i (min_std + softplus(v_i + const))        const such that v = 0 gives init_std
        L_ij  = h_i w_ij  for j < i                          zero for a diagonal covariance

    So ``loc`` never leaves the bounds. No standard deviation falls below ``min_std * h_i``, neither of an
    action alone nor of an action given the ones before it. The formula has this floor; nothing is clamped.
    The initial policy is nearly the same in every state: its mean is the center, its covariance is
    ``diag(init_std * h)²``. With ``squash``, the map into the bounds follows the draw instead. Then
    ``loc = u``, and ``L`` has 1 in place of ``h``.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds, above the lower ones.
        covariance: ``"full"`` or ``"diagonal"``.
        hidden_sizes: width of each hidden layer.
        init_std: initial standard deviation, as a fraction of half the action range.
        min_std: floor of the standard deviation, as a fraction of half the action range; below ``init_std``.
        activation: module class between the layers.
        squash: whether the values are squashed into the bounds after they are drawn.

    Raises:
        ValueError: if the bounds are infinite or do not match, if a size is below 1, or unless
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
        squash: bool = False,
    ) -> None:
        super().__init__()
        low, high = action_bounds(action_low, action_high)
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance={covariance!r} is not one of {', '.join(get_args(Covariance))}")
        if not 0.0 < min_std < init_std < math.inf:
            raise ValueError(
                f"min_std={min_std} and init_std={init_std} must satisfy 0 < min_std < init_std < inf "
                "(fractions of half the action range)"
            )
        n = low.shape[0]
        self.action_dim, self.min_std, self.init_std, self.covariance = n, min_std, init_std, covariance
        center, half_range = (high + low) / 2, (high - low) / 2
        self.squash = Squash(center, half_range) if squash else None
        if not squash:
            self.register_buffer("center", center)
            self.register_buffer("half_range", half_range)
        unit = torch.ones_like(half_range) if squash else half_range  # of a standard deviation
        # One product scales the list [diagonal, below the diagonal] and writes it to its places in L. Its
        # gradient is one product as well.
        row = column = torch.arange(n)
        if covariance == "full":
            below = torch.tril_indices(n, n, offset=-1)
            row, column = torch.cat([row, below[0]]), torch.cat([column, below[1]])
        entry = torch.zeros(len(row), n, n)
        entry[torch.arange(len(row)), row, column] = unit[row]
        self.register_buffer("_entry", entry.flatten(1))
        self.register_buffer("_floor", torch.diag(min_std * unit).flatten())
        # softplus(v + const) = init_std - min_std at v = 0
        self._shift = math.log(math.expm1(init_std - min_std))
        self.net = mlp(observation_dim, n + len(row), hidden_sizes, activation)

    @property
    def std_floor(self) -> Tensor:
        """Smallest standard deviation that the policy can express, ``[a]``, in the unit of ``loc``."""
        return self._floor.view(self.action_dim, self.action_dim).diagonal()

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``observation [..., o]`` to ``(loc [..., a], scale_tril [..., a, a])``."""
        n = self.action_dim
        raw = self.net(observation.reshape(-1, observation.shape[-1]))
        loc = raw[:, :n]
        if self.squash is None:
            loc = torch.addcmul(self.center, self.half_range, torch.tanh(loc))
        diagonal = F.softplus(raw[:, n : 2 * n] + self._shift)
        entries = diagonal if self.covariance == "diagonal" else torch.cat([diagonal, raw[:, 2 * n :]], -1)
        scale_tril = torch.addmm(self._floor, entries, self._entry)
        lead = observation.shape[:-1]
        return loc.view(*lead, n), scale_tril.view(*lead, n, n)


@policy_builder
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
    squash: bool = False,
    observation_key: NestedKey = keys.OBSERVATION,
) -> ProbabilisticActor:
    """Return a TorchRL actor ``a ~ N(loc(s), L(s) L(s)ᵀ)``, or one whose Gaussian is squashed.

    It reads the observation and writes ``loc``, ``scale_tril`` and ``action``. Samples are *not* clipped,
    because the M-step's likelihoods and divergences are those of a Gaussian. A sample may lie outside the
    bounds. Environments execute the nearest action inside, and critics that know the bounds score that one.

    With ``squash``, ``a = c + h tanh(x)``, ``x ~ N(loc(s), L(s) L(s)ᵀ)``, with the center ``c`` and the half
    ``h`` of each action's range. Then every sample lies inside the bounds, and its density falls to zero at a
    bound, as an entropy bonus needs it. The M-step fits ``x``, so it stays that of a Gaussian.

    TorchRL's exploration mode ``RANDOM`` (the default) draws an action. ``DETERMINISTIC`` returns the mean,
    which lies inside the bounds, or with ``squash`` the action of the mean, ``c + h tanh(loc)``.

    Args:
        observation_dim: ``o``.
        action_low: ``[a]``, finite lower bounds.
        action_high: ``[a]``, finite upper bounds.
        covariance: ``"full"`` or ``"diagonal"``.
        hidden_sizes: width of each hidden layer.
        init_std: initial standard deviation, as a fraction of half the action range.
        min_std: floor of the standard deviation, as a fraction of half the action range.
        activation: module class between the layers.
        squash: whether the values are squashed into the bounds after they are drawn. Standard deviations are
            then those before the squashing.
        observation_key: entry read, ``[..., o]``.

    Returns:
        A ``ProbabilisticTensorDictSequential`` whose network is a ``GaussianNet``, which states the formula.

    Raises:
        ValueError: as for ``GaussianNet``.

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
        squash=squash,
    )
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=[observation_key], out_keys=[keys.LOC, keys.SCALE_TRIL]),
        in_keys=[keys.LOC, keys.SCALE_TRIL],
        out_keys=[keys.ACTION],
        distribution_class=SquashedNormal if squash else CholeskyNormal,
        distribution_kwargs={"squash": net.squash} if squash else {},  # the network's, which moves with it
        default_interaction_type=InteractionType.RANDOM,
    )
