"""An ensemble of Q networks that scores many actions per state without repeating the state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safe_components.critics._cpu_scoring import Layers, score_particles
from safe_components.ops import action_bounds, transformed

# In-place activations save memory. They are safe because the backward pass of a product does not read
# the product's result.
_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.Sigmoid: torch.sigmoid_,
}


class QEnsemble(nn.Module):
    """``Q_e(s, a)`` for ``num_members`` independent multi-layer perceptrons ``e`` on ``[s, a]``.

    For ``K`` actions per state the first layer is split, ``W [s, a] + b = (W_s s + b) + W_a a``. The bracket
    is computed once per state, so states are never repeated. The members' weights are stacked, and one
    batched product per layer serves all members. The values equal those of separate networks on ``[s, a]``.
    Each member's initial weights are drawn independently, from the distribution that `torch.nn.Linear` uses.

    If ``action_low`` and ``action_high`` are given, actions are clamped to them first, because environments
    execute the clamped action. Q is then exactly constant beyond the bounds, and its gradient there is zero.

    On a CPU, many actions per state are scored without gradient by `_cpu_scoring`, which computes the same
    values faster.

    Args:
        obs_dim: size ``o`` of an observation.
        action_dim: size ``a`` of an action.
        num_members: number ``E`` of networks.
        num_outputs: values per member, for instance one per cost signal.
        hidden_sizes: width of each hidden layer; at least one layer.
        action_low: ``[a]`` finite lower bounds, or None for no clamp.
        action_high: ``[a]`` finite upper bounds, or None for no clamp.
        activation: module class between the layers.
        layer_norm: True normalizes every hidden layer before its activation, per state and action and
            without learned scale. It keeps temporal-difference targets from diverging (Gallici et al. 2024,
            arXiv 2407.04811).
        scoring_dtype: number format, such as ``torch.bfloat16``, of the products between hidden layers.
            It applies only where many actions per state are scored without gradient. None means the
            parameters' format, which the first and the last layer always keep.

    Attributes:
        unit: ``[E, 1, num_outputs]``, a buffer of ones at first. A network's output is multiplied by it, so
            that networks and their step sizes need not know how large a reward or a cost is. `CriticLearner`
            sets it.

    Raises:
        ValueError: if a size is below 1, or the bounds are invalid or do not match ``action_dim``.

    Example:
        >>> import torch
        >>> critic = QEnsemble(obs_dim=3, action_dim=2, num_members=4, hidden_sizes=(16, 16))
        >>> critic(torch.randn(5, 3), torch.randn(5, 2)).shape  # one action per state
        torch.Size([4, 5, 1])
        >>> critic(torch.randn(5, 3), torch.randn(5, 64, 2)).shape  # 64 particles per state
        torch.Size([4, 5, 64, 1])
    """

    action_low: Tensor | None
    action_high: Tensor | None
    unit: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_members: int,
        num_outputs: int = 1,
        hidden_sizes: Sequence[int] = (256, 256),
        action_low: Sequence[float] | Tensor | None = None,
        action_high: Sequence[float] | Tensor | None = None,
        activation: type[nn.Module] = nn.ReLU,
        layer_norm: bool = False,
        scoring_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"obs_dim": obs_dim, "action_dim": action_dim, "num_members": num_members}
        sizes |= {"num_outputs": num_outputs, "len(hidden_sizes)": len(hidden_sizes)}
        sizes |= {f"hidden_sizes[{i}]": width for i, width in enumerate(hidden_sizes)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.num_members, self.num_outputs = num_members, num_outputs
        self.layer_norm, self.scoring_dtype = layer_norm, scoring_dtype
        self.activation = activation()
        low, high = None, None
        if action_low is not None and action_high is not None:
            low, high = action_bounds(action_low, action_high)
            if len(low) != action_dim:
                raise ValueError(f"action_low and action_high must be [{action_dim}], got [{len(low)}]")
        elif action_low is not None or action_high is not None:
            raise ValueError("action_low and action_high must both be given, or neither")
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)
        self.register_buffer("unit", torch.ones(num_members, 1, num_outputs))

        # All parameters live on this one module, so exchanging them for others touches a single dictionary.
        self.num_layers = len(hidden_sizes) + 1
        widths = [obs_dim + action_dim, *hidden_sizes, num_outputs]
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            bound = 1.0 / math.sqrt(fan_in)
            for name, rows in (("weight", fan_in), ("bias", 1)):
                value = torch.empty(num_members, rows, fan_out).uniform_(-bound, bound)
                self.register_parameter(f"{name}_{i}", nn.Parameter(value))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return values ``[E, ..., (K,) num_outputs]``.

        Args:
            observation: ``[..., o]``.
            action: ``[..., a]``, one action per state, or ``[..., K, a]``.

        Raises:
            ValueError: if the shapes do not fit together or the last sizes are not ``o`` and ``a``.
        """
        lead = observation.shape[:-1]
        if (
            observation.shape[-1] != self.obs_dim
            or action.shape[-1] != self.action_dim
            or action.shape[: len(lead)] != lead
            or action.ndim - observation.ndim not in (0, 1)
        ):
            raise ValueError(
                f"observation [..., {self.obs_dim}] and action [..., {self.action_dim}] or "
                f"[..., K, {self.action_dim}] with the same leading sizes are needed, got "
                f"{tuple(observation.shape)} and {tuple(action.shape)}"
            )
        if self.action_low is not None:
            action = torch.clamp(action, self.action_low, self.action_high)
        states, per_state = math.prod(lead), action.shape[len(lead) : -1]
        observation = observation.reshape(states, self.obs_dim)
        action = action.reshape(states, *per_state, self.action_dim)
        on_host = action.device.type == "cpu" and not torch.is_grad_enabled() and not transformed()
        if per_state and action.numel() and on_host:
            value = score_particles(
                self._layers,
                observation,
                action,
                self._activate_,
                layer_norm=self.layer_norm,
                dtype=self.scoring_dtype,
            )
        else:
            value = self._formula(observation, action)
        value = value * self.unit
        return value.view(self.num_members, *lead, *per_state, self.num_outputs)

    def _formula(self, observation: Tensor, action: Tensor) -> Tensor:
        """``[E, B (* K), num_outputs]`` of ``observation [B, o]`` and ``action [B, (K,) a]``."""
        (weight, bias), *hidden, (weight_out, bias_out) = self._layers
        if action.ndim == 2:
            rows = torch.cat([observation, action], -1).expand(self.num_members, -1, -1)
            x = torch.baddbmm(bias, rows, weight)
        else:
            of_state, of_action = torch.split(weight, [self.obs_dim, self.action_dim], 1)
            state_part = torch.baddbmm(bias, observation.expand(self.num_members, -1, -1), of_state)
            rows = action.reshape(1, -1, self.action_dim).expand(self.num_members, -1, -1)
            x = torch.bmm(rows, of_action).view(self.num_members, *action.shape[:-1], weight.shape[-1])
            x = x.add_(state_part.unsqueeze(2)).flatten(1, 2)
        own = low = x.dtype
        if action.ndim == 3 and self.scoring_dtype is not None and not torch.is_grad_enabled():
            low = self.scoring_dtype
        x = self._activate_(self._normalize(x))
        for weight, bias in hidden:
            x = torch.baddbmm(bias.to(low), x.to(low), weight.to(low))
            x = self._activate_(self._normalize(x))
        return torch.baddbmm(bias_out, x.to(own), weight_out)

    def _normalize(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x

    @property
    def _layers(self) -> Layers:
        return [(getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")) for i in range(self.num_layers)]

    @property
    def _activate_(self) -> Callable[[Tensor], Tensor]:
        return _IN_PLACE.get(type(self.activation), self.activation)
