"""The fast twin of `QEnsemble` on a CPU: many actions per state, scored without gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Layers = list[tuple[Tensor, Tensor]]
"""Weight ``[E, in, out]`` and bias ``[E, 1, out]`` of each layer, from the input on."""


def score_particles(
    layers: Layers,
    observation: Tensor,
    action: Tensor,
    activate_: Callable[[Tensor], Tensor],
    *,
    layer_norm: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the values of ``K`` actions per state, equal to `QEnsemble`'s up to rounding.

    Three things make it fast:

    - One member scores a block of states at a time, so that the activations stay in the cache.
    - With ReLU and without normalization, the biases of the hidden layers are not added to the rows (see
      `_fold_biases`).
    - The first layer, normalized or not, is one product of two small factors (see `_first_layer_factors`).

    Args:
        layers: at least two.
        observation: ``[B, o]``.
        action: ``[B, K, a]``, not empty.
        activate_: the activation; it may change its argument.
        layer_norm: whether the hidden layers are normalized.
        dtype: number format of the products between hidden layers; None means that of the action.

    Returns:
        ``[E, B * K, num_outputs]``.

    Example:
        >>> linear = [(torch.ones(1, 3, 4), torch.zeros(1, 1, 4)), (torch.ones(1, 4, 1), torch.ones(1, 1, 1))]
        >>> score_particles(linear, torch.ones(2, 1), torch.ones(2, 5, 2), torch.relu_).unique()
        tensor([13.])
    """
    states, per_state = action.shape[:2]
    weight_out, bias_out = layers[-1]
    if dtype is None or len(layers) == 2:  # without hidden products there is nothing to round
        dtype = action.dtype
    coordinates, basis = _first_layer_factors(observation, action, layers[0], layer_norm)
    members = len(basis)
    value = action.new_empty(members, states * per_state, weight_out.shape[-1])
    # Each hidden layer has one buffer, reused by every block: fresh ones would cost page faults. The views
    # that a block needs are made beforehand: taking a slice costs as much as a small operation.
    widths = [weight.shape[1] for weight, _ in layers[1:]]
    step = _block_states(states, per_state, max(widths), members)
    first, last = (action.new_empty(step * per_state, width) for width in (widths[0], widths[-1]))
    hidden = [action.new_empty(step * per_state, width, dtype=dtype) for width in widths]
    whole = (first, last, hidden)
    count = states % step * per_state  # rows of the last block, if it is smaller
    rest = (first[:count], last[:count], [buffer[:count] for buffer in hidden])
    folds = activate_ is torch.relu_ and not layer_norm
    for e in range(members):
        own = [(weight[e], bias[e]) for weight, bias in layers[1:]]
        if folds:
            products, shift = _fold_biases(own, dtype)
        else:
            products, shift = [(w.to(dtype), b.to(dtype)) for w, b in own[:-1]], bias_out[e]
        blocks = (
            torch.split(coordinates[e], step),
            torch.split(basis[e], step),
            torch.split(value[e], step * per_state),
        )
        for rows, columns, out in zip(*blocks, strict=True):
            x, last, (low, *others) = whole if len(rows) == step else rest
            torch.bmm(rows, columns, out=x.view(len(rows), per_state, -1))
            x = activate_(x)
            if dtype != x.dtype:
                x = low.copy_(x)
            for (weight, bias), result in zip(products, others, strict=True):
                if folds:
                    x = torch.mm(x, weight, out=result).clamp_(min=bias)
                else:
                    x = torch.addmm(bias, x, weight, out=result)
                    x = activate_(F.layer_norm(x, x.shape[-1:]) if layer_norm else x)
            if dtype != out.dtype:
                x = last.copy_(x)
            torch.mm(x, weight_out[e], out=out)
        value[e] += shift
    return value


def _fold_biases(layers: Layers, dtype: torch.dtype) -> tuple[Layers, Tensor]:
    """Move the biases of one member's ReLU layers into its output.

    Since ``max(x W + c, 0) = max(x W, -c) + c``, a bias ``c`` only has to limit the product from below. The
    ``c`` that remains passes through the next layer once, as ``c W'``, for all rows together.

    Args:
        layers: weight ``[in, out]`` and bias ``[1, out]``, from the second layer to the output.
        dtype: of the products between hidden layers.

    Returns:
        ``W`` and ``-c`` of each hidden product, in ``dtype``, and what must be added to the output.
    """
    folded: Layers = []
    carried = torch.zeros_like(layers[0][1])
    for (weight, bias), (following, _) in itertools.pairwise(layers):
        shift = (bias + carried).to(dtype)
        folded.append((weight.to(dtype), -shift))
        carried = shift.to(bias.dtype) @ following
    return folded, layers[-1][1] + carried


def _first_layer_factors(
    observation: Tensor, action: Tensor, layer: tuple[Tensor, Tensor], layer_norm: bool
) -> tuple[Tensor, Tensor]:
    """Factor the first hidden layer before its activation into ``[E, B, K, 1+a]`` and ``[E, B, 1+a, h]``.

    With ``u = W_s s + b``, the layer ``u + W_a a`` is the product of ``[1, a]`` and ``[u; W_a]``. Its
    normalization needs no pass over the ``h`` columns. Once ``u`` and the rows of ``W_a`` are centered, the
    layer's mean is zero, and its variance is a quadratic form in ``a``:

        h var = |u|² + 2 (W_a u)ᵀ a + aᵀ W_a W_aᵀ a

    It is then enough to divide ``[1, a]`` by the standard deviation.
    """
    sizes = [observation.shape[-1], action.shape[-1]]
    (of_state, weight), bias = torch.split(layer[0], sizes, 1), layer[1]
    members, states, per_state = len(bias), *action.shape[:2]
    state_part = torch.baddbmm(bias, observation.expand(members, -1, -1), of_state)
    coordinates = F.pad(action, (1, 0), value=1.0).expand(members, -1, -1, -1)
    if layer_norm:
        state_part = state_part - state_part.mean(-1, keepdim=True)
        weight = weight - weight.mean(-1, keepdim=True)
        cross = (state_part @ weight.mT).unsqueeze(2)
        quadratic = (action.flatten(0, 1) @ (weight @ weight.mT)).view(members, states, per_state, -1)
        variance = ((quadratic + 2.0 * cross) * action).sum(-1, keepdim=True)
        variance += state_part.square().sum(-1)[..., None, None]
        # The sum is a square, so a value below zero is rounding. The constant is torch's layer_norm's.
        variance = variance.clamp_min_(0.0).div_(state_part.shape[-1]).add_(1e-5)
        coordinates = coordinates * variance.rsqrt_()
    weight = weight.unsqueeze(1).expand(-1, states, -1, -1)
    return coordinates, torch.cat([state_part.unsqueeze(2), weight], 2)


def _block_states(states: int, per_state: int, width: int, members: int) -> int:
    """Choose how many states make a block, from measurements; the values do not depend on it.

    Small blocks spend their time on calls. Large blocks leave the caches, and they do so sooner where the
    layer is narrow, because its products do little work per number. A buffer is fresh memory whose first use
    costs page faults, so about 16 blocks should share it.
    """
    numbers = per_state * width  # of a state, in the widest layer
    least = 64 * 1024 * torch.get_num_threads() // numbers
    most = min(8 * width**2, 512 * 1024) * torch.get_num_threads() // numbers
    return max(1, min(states, max(least, min(states * members // 16, most))))
