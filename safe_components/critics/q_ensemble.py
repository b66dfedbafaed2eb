"""An ensemble of Q networks that scores many actions per state without repeating the state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# In-place twins: they save memory, and a product's gradient does not ask for its result.
_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.Sigmoid: torch.sigmoid_,
}
Layers = list[tuple[Tensor, Tensor]]
"""Weight ``[E, in, out]`` and bias ``[E, 1, out]``, from the input on."""


class QEnsemble(nn.Module):
    """``Q_e(s, a)`` for ``num_members`` independent multi-layer perceptrons ``e`` on ``[s, a]``.

    Where a state comes with ``K`` actions the first layer is split, ``W [s, a] + b = (W_s s + b) + W_a a``:
    the bracket is computed once per state, so states are never repeated. The members'
    weights are stacked and multiplied in one batched product. Values equal those of separate networks on
    ``[s, a]``, and the initial weights are drawn like `torch.nn.Linear`'s, for each member anew.

    Given ``action_low`` and ``action_high``, actions are clamped to them first, because environments execute
    the clamped action: Q is then exactly constant beyond the bounds, and its gradient there is zero.

    Args:
        obs_dim: ``o``.
        action_dim: ``a``.
        num_members: ``E``.
        num_outputs: values per member, for instance one per cost signal.
        hidden_sizes: width of each hidden layer, at least one.
        action_low: ``[a]`` lower bounds, or None for no clamp.
        action_high: ``[a]`` upper bounds, or None for no clamp.
        activation: module class between the layers.
        layer_norm: True normalises the first hidden layer before its activation, per state and
            action and without learned scale; it keeps temporal-difference targets from diverging (the
            ``LayerNormMLP`` of Acme's MPO, Hoffman et al. 2020, arXiv 2006.00979).
        scoring_dtype: number format of the products between hidden layers where many actions per state
            are scored without gradient, such as ``torch.bfloat16``; None is that of the parameters. The first
            and the last layer, gradients and single actions (the targets) keep the parameters' format.

    Raises:
        ValueError: if a size is below 1, or the bounds do not match.

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
        self.layer_norm, self.scoring_dtype = layer_norm, scoring_dtype
        sizes = {"obs_dim": obs_dim, "action_dim": action_dim, "num_members": num_members}
        sizes |= {"num_outputs": num_outputs, "len(hidden_sizes)": len(hidden_sizes)}
        sizes |= {f"hidden_sizes[{i}]": width for i, width in enumerate(hidden_sizes)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.num_members, self.num_outputs = num_members, num_outputs
        low, high = _bounds(action_low, action_high, action_dim)
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)
        self.activation = activation()
        self._folds = activation is nn.ReLU
        self._activate_: Callable[[Tensor], Tensor] = _IN_PLACE.get(activation, self.activation)

        # All parameters live on this one module, [E, in, out]: swapping them in and out is one dictionary.
        self.num_layers = len(hidden_sizes) + 1
        widths = [obs_dim + action_dim, *hidden_sizes, num_outputs]
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            weight, bias = _linear_init(num_members, fan_in, fan_out)
            self.register_parameter(f"weight_{i}", nn.Parameter(weight))
            self.register_parameter(f"bias_{i}", nn.Parameter(bias))

    def forward(self, observation: Tensor, action: Tensor, members: slice = slice(None)) -> Tensor:
        """Values ``[E, ..., (K,) num_outputs]`` of ``action [..., (K,) a]`` in ``observation [..., o]``.

        Args:
            observation: states.
            action: one or ``K`` actions for each.
            members: those to ask; all unless given.

        Raises:
            ValueError: if the shapes do not fit together or the last sizes are not ``o`` and ``a``.
        """
        lead = observation.shape[:-1]
        many = action.ndim == observation.ndim + 1
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
        states = math.prod(lead)
        observation = observation.reshape(states, self.obs_dim)
        layers = [
            (getattr(self, f"weight_{i}")[members], getattr(self, f"bias_{i}")[members])
            for i in range(self.num_layers)
        ]
        if not many:
            value = self._one_action(observation, action.reshape(states, self.action_dim), layers)
            return value.view(len(value), *lead, self.num_outputs)
        per_state = action.shape[-2]
        action = action.reshape(states, per_state, self.action_dim)
        if observation.device.type != "cpu" or torch.is_grad_enabled() or not action.numel():
            value = self._many_actions(observation, action, layers)
        else:
            value = self._in_blocks(observation, action, layers)
        return value.view(len(value), *lead, per_state, self.num_outputs)

    def _normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x

    def _one_action(self, observation: Tensor, action: Tensor, layers: Layers) -> Tensor:
        """``[E, B, num_outputs]``."""
        members = len(layers[0][0])
        x = torch.cat([observation, action], -1).expand(members, -1, -1)
        return self._upwards(torch.baddbmm(layers[0][1], x, layers[0][0]), layers)

    def _many_actions(self, observation: Tensor, action: Tensor, layers: Layers) -> Tensor:
        """All members and rows in one product a layer: ``[E, B * K, num_outputs]``."""
        states, per_state = action.shape[:2]
        state_part, weight = self._first_layer(observation, layers[0])
        members = len(weight)
        rows = action.reshape(1, states * per_state, self.action_dim).expand(members, -1, -1)
        x = torch.bmm(rows, weight).view(members, states, per_state, weight.shape[-1])
        # Adding in place is safe: a product's backward pass does not read its result.
        x = x.add_(state_part.unsqueeze(2)).flatten(1, 2)
        return self._upwards(x, layers, x.dtype if torch.is_grad_enabled() else self._dtype_between(x))

    def _dtype_between(self, x: Tensor) -> torch.dtype:
        """Of the products between hidden layers, if there are any."""
        return self.scoring_dtype if self.scoring_dtype and self.num_layers > 2 else x.dtype

    def _upwards(self, x: Tensor, layers: Layers, dtype: torch.dtype | None = None) -> Tensor:
        """From the first layer's values ``[E, N, h]`` to the output's; hidden products in ``dtype``."""
        act, own = self._activate_, x.dtype
        x = act(self._normalise(x)).to(dtype or own)
        for weight, bias in layers[1:-1]:
            x = act(torch.baddbmm(bias.to(x.dtype), x, weight.to(x.dtype)))
        return torch.baddbmm(layers[-1][1], x.to(own), layers[-1][0])

    def _in_blocks(self, observation: Tensor, action: Tensor, layers: Layers) -> Tensor:
        """As `_many_actions` without gradients, a cache-sized block of states at a time."""
        act = self._activate_
        states, per_state = action.shape[:2]
        coordinates, basis = self._factors(observation, action, layers[0])
        members, dtype = len(basis), self._dtype_between(action)
        value = action.new_empty(members, states * per_state, self.num_outputs)
        # One buffer a hidden layer, reused by every block: fresh ones would cost page faults. What a block
        # reads and writes is a view made beforehand: a slice takes as long as a small operation.
        widths = [weight.shape[1] for weight, _ in layers[1:]]
        step = _block_states(states, per_state, max(widths), members)
        first, last = (action.new_empty(step * per_state, width) for width in (widths[0], widths[-1]))
        hidden = [action.new_empty(step * per_state, width, dtype=dtype) for width in widths]
        whole = (first, last, hidden)
        count = ((states - 1) % step + 1) * per_state
        rest = (first[:count], last[:count], [buffer[:count] for buffer in hidden])
        for e in range(members):
            own, rest_of_bias = self._foldable(layers, e, dtype)
            blocks = (coordinates[e].split(step), basis[e].split(step), value[e].split(step * per_state))
            for rows, columns, out in zip(*blocks, strict=True):
                x, last, (low, *others) = whole if len(rows) == step else rest
                torch.bmm(rows, columns, out=x.view(len(rows), per_state, -1))
                x = act(x)
                if dtype != x.dtype:
                    x = low.copy_(x)
                for (weight, bias), result in zip(own, others, strict=True):
                    if self._folds:
                        x = torch.mm(x, weight, out=result).clamp_(min=bias)
                    else:
                        x = act(torch.addmm(bias, x, weight, out=result))
                if dtype != out.dtype:
                    x = last.copy_(x)
                torch.mm(x, layers[-1][0][e], out=out)
            value[e] += rest_of_bias
        return value

    def _foldable(self, layers: Layers, e: int, dtype: torch.dtype) -> tuple[Layers, Tensor]:
        """Weight and bias of one member's hidden products, and what is then to be added to its output.

        With ReLU no bias needs to be added to the rows: ``max(x W + c, 0) = max(x W, -c) + c``, and the ``c``
        that is left over goes through the next layer once, ``c W'``, for all rows. A pair is then weight
        and ``-c``.
        """
        bias_out = layers[-1][1][e]
        if not self._folds:
            return [(weight[e].to(dtype), bias[e].to(dtype)) for weight, bias in layers[1:-1]], bias_out
        folded: Layers = []
        carried = torch.zeros_like(layers[1][1][e])
        for (weight, bias), (following, _) in itertools.pairwise(layers[1:]):
            shift = (bias[e] + carried).to(dtype)
            folded.append((weight[e].to(dtype), -shift))
            carried = shift.to(bias.dtype) @ following[e]
        return folded, bias_out + carried

    def _first_layer(self, observation: Tensor, layer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """``u = W_s s + b [E, B, h]`` and ``W_a [E, a, h]``."""
        (of_state, of_action), bias = layer[0].split([self.obs_dim, self.action_dim], 1), layer[1]
        return torch.baddbmm(bias, observation.expand(len(bias), -1, -1), of_state), of_action

    def _factors(
        self, observation: Tensor, action: Tensor, layer: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Factors of the first hidden layer before its activation: ``[E, B, K, 1+a]``, ``[E, B, 1+a, h]``.

        ``u + W_a a`` is the product of ``[1, a]`` and ``[u; W_a]``. Layer normalisation needs no pass over
        the ``h`` columns: without the mean of each row of ``u`` and ``W_a`` the result has mean zero, and its
        variance is a quadratic form in ``a``,

            h var = |u|^2 + 2 (W_a u)^T a + a^T W_a W_a^T a

        so ``[1, a]`` is divided by the standard deviation instead.
        """
        state_part, weight = self._first_layer(observation, layer)
        members, states, per_state = len(weight), *action.shape[:2]
        coordinates = F.pad(action, (1, 0), value=1.0).expand(members, -1, -1, -1)
        if self.layer_norm:
            state_part = state_part - state_part.mean(-1, keepdim=True)
            weight = weight - weight.mean(-1, keepdim=True)
            cross = (state_part @ weight.mT).unsqueeze(2)
            quadratic = (action.flatten(0, 1) @ (weight @ weight.mT)).view(members, states, per_state, -1)
            variance = ((quadratic + 2.0 * cross) * action).sum(-1, keepdim=True)
            variance += state_part.square().sum(-1)[..., None, None]
            # The sum is a square: below zero is rounding. The constant is that of torch's layer_norm.
            variance = variance.clamp_min_(0.0).div_(state_part.shape[-1]).add_(1e-5)
            coordinates = coordinates * variance.rsqrt_()
        weight = weight.unsqueeze(1).expand(-1, states, -1, -1)
        return coordinates, torch.cat([state_part.unsqueeze(2), weight], 2)


def _block_states(states: int, per_state: int, width: int, members: int) -> int:
    """How many states make a block on a CPU, as measured; the values do not depend on it.

    Small blocks spend their time on calls, large ones leave the caches, the sooner the narrower the layer,
    whose products then have little to do per number. And a buffer is fresh memory, whose first use costs page
    faults: it should be used some 16 times.
    """
    numbers = per_state * width  # of a state, in the widest layer
    least = 64 * 1024 * torch.get_num_threads() // numbers
    most = min(8 * width**2, 512 * 1024) * torch.get_num_threads() // numbers
    return max(1, min(states, max(least, min(states * members // 16, most))))


def _linear_init(num_members: int, fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """Weight ``[E, fan_in, fan_out]`` and bias ``[E, 1, fan_out]``, uniform on ``±1/sqrt(fan_in)``."""
    bound = 1.0 / math.sqrt(fan_in)
    weight = torch.empty(num_members, fan_in, fan_out).uniform_(-bound, bound)
    return weight, torch.empty(num_members, 1, fan_out).uniform_(-bound, bound)


def _bounds(
    low: Sequence[float] | Tensor | None, high: Sequence[float] | Tensor | None, action_dim: int
) -> tuple[Tensor | None, Tensor | None]:
    if low is None and high is None:
        return None, None
    if low is None or high is None:
        raise ValueError("action_low and action_high must both be given, or neither")
    dtype = torch.get_default_dtype()
    low_t, high_t = torch.as_tensor(low, dtype=dtype), torch.as_tensor(high, dtype=dtype)
    if low_t.shape != (action_dim,) or high_t.shape != (action_dim,) or not bool((low_t < high_t).all()):
        raise ValueError(
            f"action_low and action_high must be [{action_dim}] with low < high, got {low_t.tolist()} "
            f"and {high_t.tolist()}"
        )
    return low_t.clone(), high_t.clone()
