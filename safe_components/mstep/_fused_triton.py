"""The fast twin of ``_fused.py`` on a GPU: an iteration's objective and gradient in one Triton kernel.

``_fused.decoupled_terms`` starts 25 kernels and its gradient 18 more, each on a few hundred small matrices.
Here one warp computes several states: it keeps their matrices in registers, and solves triangular systems row
by row, without an inverse. The gradient is linear in the weights ``g`` of the four terms. So the kernel
also computes its parts, which a second kernel adds up once the weights are known.
``tests/mstep/test_likelihood.py`` holds both twins to the formula; Triton's interpreter
(``TRITON_INTERPRET=1``) runs the kernels on a CPU.
"""

# In a kernel, tuples grow and numbers are tensors; Triton itself has no types.
# mypy: disable-error-code="assignment, misc, no-untyped-call, no-untyped-def, untyped-decorator"
# mypy: disable-error-code="var-annotated"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_components.mstep._fused import OldPolicy
from safe_components.mstep.likelihood import DecoupledTerms

HALF_LOG_2PI = tl.constexpr(0.5 * math.log(2.0 * math.pi))
# Entries of a matrix per program of the first kernel, eight for each thread of a warp, and of the second.
_CELLS, _ENTRIES = 256, 256


def decoupled_terms(old: OldPolicy, loc: Tensor, scale_tril: Tensor) -> DecoupledTerms:
    """Compute `_fused.decoupled_terms`; differentiable once, also under ``torch.vmap``."""
    arguments = []
    for matrix, vector in ((scale_tril, loc), (old.scale_tril, old.loc), (old.second, old.first)):
        arguments += [vector.reshape(1, -1, vector.shape[-1]), matrix.reshape(1, -1, *matrix.shape[-2:])]
    outputs = _Decoupled.apply(*arguments, old.total.reshape(1, -1))
    fit_mean, fit_cov, kl_mean, kl_cov, entropy = (term.squeeze(0) for term in outputs[:5])
    return DecoupledTerms(fit_mean, fit_cov, kl_mean, kl_cov, entropy.detach())


class _Decoupled(torch.autograd.Function):
    """The five means of `DecoupledTerms` for each of ``P`` members, and the parts of their gradient."""

    @staticmethod
    def forward(*arguments: Tensor) -> tuple[Tensor, ...]:
        """From ``loc [P, B, a]``, ``scale_tril [P, B, a, a]``, those of the old policy, and its moments."""
        sums, loc_parts, tril_parts = _terms(*(argument.contiguous() for argument in arguments))
        return *sums.sum(-2).unbind(-1), loc_parts, tril_parts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[5:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Add up the parts. The entropy is detached, and nothing else depends on the parts."""
        loc_parts, tril_parts = ctx.saved_tensors
        weights = [loc_parts.new_zeros(loc_parts.shape[1]) if g is None else g for g in gradients[:4]]
        return *_gradient(loc_parts, tril_parts, *(g.contiguous() for g in weights)), *[None] * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[Any, tuple[int, ...]]:
        """Make one call with as many members as are mapped over."""
        size = info.batch_size
        mapped = [
            (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            for x, dim in zip(arguments, in_dims, strict=True)
        ]
        outputs = _Decoupled.apply(*mapped)
        dims = (0,) * 5 + (1,) * 2
        return tuple(x.unflatten(dim, (size, -1)) for x, dim in zip(outputs, dims, strict=True)), dims


@torch.library.custom_op("safe_components::mstep_terms", mutates_args=())
def _terms(
    loc: Tensor, tril: Tensor, loc_old: Tensor, tril_old: Tensor, first: Tensor, second: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Start the kernel on contiguous tensors; an operator, which ``torch.compile`` does not open.

    Returns:
        Sums of the terms over the states of each program ``[P, programs, 5]``, divided by ``B``; and the
        parts of the gradient ``[2, P, B, a]``, ``[2, P, B, a, a]``: those of the likelihood, then those of
        the divergence.
    """
    outputs = sums, loc_parts, tril_parts = _outputs(loc)
    members, states, size = loc.shape
    width = triton.next_power_of_2(size)
    with torch.cuda.device_of(loc):  # Triton starts kernels on the current device
        _terms_kernel[(sums.shape[1], members)](
            loc, tril, loc_old, tril_old, first, second, total, sums, loc_parts, tril_parts, states,
            SIZE=size, STATES=_states(size), WIDTH=width, num_warps=max(width * width // _CELLS, 1),
        )  # fmt: skip
    return outputs


def _states(size: int) -> int:
    """States per program."""
    return int(max(_CELLS // triton.next_power_of_2(size) ** 2, 1))


def _outputs(loc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    programs = triton.cdiv(loc.shape[1], _states(loc.shape[2]))
    sums, loc_parts = loc.new_empty(len(loc), programs, 5), loc.new_empty(2, *loc.shape)
    return sums, loc_parts, loc.new_empty(2, *loc.shape, loc.shape[-1])


@_terms.register_fake
def _terms_shapes(
    loc: Tensor, tril: Tensor, loc_old: Tensor, tril_old: Tensor, first: Tensor, second: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(loc)


@torch.library.custom_op("safe_components::mstep_gradient", mutates_args=())
def _gradient(
    loc_parts: Tensor, tril_parts: Tensor, fit_mean: Tensor, fit_cov: Tensor, kl_mean: Tensor, kl_cov: Tensor
) -> tuple[Tensor, Tensor]:
    """Add up the parts from `_terms`, with weights ``[P]``."""
    outputs = loc_grad, tril_grad = torch.empty_like(loc_parts[0]), torch.empty_like(tril_parts[0])
    with torch.cuda.device_of(loc_parts):
        _gradient_kernel[(triton.cdiv(loc_grad.numel() + tril_grad.numel(), _ENTRIES),)](
            loc_parts, tril_parts, fit_mean, fit_cov, kl_mean, kl_cov, loc_grad, tril_grad,
            loc_grad.numel(), len(loc_grad), SIZE=loc_grad.shape[-1], ENTRIES=_ENTRIES, num_warps=8,
        )  # fmt: skip
    return outputs


@_gradient.register_fake
def _gradient_shapes(
    loc_parts: Tensor, tril_parts: Tensor, fit_mean: Tensor, fit_cov: Tensor, kl_mean: Tensor, kl_cov: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(loc_parts[0]), torch.empty_like(tril_parts[0])


@triton.jit
def _terms_kernel(
    loc,  # [P, B, SIZE]
    tril,  # [P, B, SIZE, SIZE]
    loc_old,  # [P, B, SIZE]
    tril_old,  # [P, B, SIZE, SIZE]
    first,  # [P, B, SIZE]
    second,  # [P, B, SIZE, SIZE]
    total,  # [P, B]
    sums,  # [P, programs, 5]
    loc_parts,  # [2, P, B, SIZE]
    tril_parts,  # [2, P, B, SIZE, SIZE]
    states,  # B
    SIZE: tl.constexpr,  # a
    STATES: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two from a
):
    """``_fused.decoupled_terms`` of the states that are this program's, and the parts of its gradient."""
    member, members = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    row = tl.program_id(0) * STATES + tl.arange(0, STATES)
    is_state = row < states
    state = member * states + row
    weight = tl.load(total + state, mask=is_state, other=0.0)
    share = tl.full([], 1.0, loc.dtype.element_ty) / states
    old, new, moment = (
        tril_old + state * SIZE * SIZE,
        tril + state * SIZE * SIZE,
        second + state * SIZE * SIZE,
    )

    # The mean: δ, and its parts of the gradient.
    index = tl.arange(0, WIDTH)[None, :]
    inside = is_state[:, None] & (index < SIZE)
    vector = state[:, None] * SIZE + index
    shift = tl.load(loc + vector, mask=inside, other=0.0) - tl.load(loc_old + vector, mask=inside, other=0.0)
    for k in range(SIZE):  # L_old⁻¹ (μ - μ_old)
        entry = tl.sum(tl.where(index == k, shift, 0.0), axis=1) / _diagonal(old, k, is_state, SIZE)
        below = _column(old, k, is_state, SIZE, WIDTH)
        shift = tl.where(index == k, entry[:, None], shift) - below * entry[:, None]
    e = tl.load(first + vector, mask=inside, other=0.0)
    pull = e - weight[:, None] * shift
    moved, kl_mean = tl.sum((e + pull) * shift, axis=1), 0.5 * tl.sum(shift * shift, axis=1)
    for back in range(SIZE):  # L_old⁻ᵀ [pull, δ]
        k = SIZE - 1 - back
        diagonal, before = _diagonal(old, k, is_state, SIZE), _row(old, k, is_state, SIZE, WIDTH)
        fit = tl.sum(tl.where(index == k, pull, 0.0), axis=1) / diagonal
        kl = tl.sum(tl.where(index == k, shift, 0.0), axis=1) / diagonal
        pull = tl.where(index == k, fit[:, None], pull) - before * fit[:, None]
        shift = tl.where(index == k, kl[:, None], shift) - before * kl[:, None]
    tl.store(loc_parts + vector, pull * share, mask=inside)
    tl.store(loc_parts + members * states * SIZE + vector, shift * share, mask=inside)

    # The covariance: M, M S Mᵀ and M Mᵀ.
    i, j = tl.arange(0, WIDTH)[None, :, None], tl.arange(0, WIDTH)[None, None, :]
    cell = i * SIZE + j
    in_matrix = is_state[:, None, None] & (i < SIZE) & (j < SIZE)
    ratio = tl.load(old[:, None, None] + cell, mask=in_matrix & (j <= i), other=0.0)
    for k in range(SIZE):  # M = L⁻¹ L_old
        entries = tl.sum(tl.where(i == k, ratio, 0.0), axis=1) / _diagonal(new, k, is_state, SIZE)[:, None]
        below = _column(new, k, is_state, SIZE, WIDTH)
        ratio = tl.where(i == k, entries[:, None, :], ratio) - below[:, :, None] * entries[:, None, :]
    spread = tl.zeros_like(ratio)
    for k in range(SIZE):  # M S
        of_ratio = tl.sum(tl.where(j == k, ratio, 0.0), axis=2)
        of_moment = tl.load(moment[:, None] + k * SIZE + index, mask=inside, other=0.0)
        spread += of_ratio[:, :, None] * of_moment[:, None, :]
    fitted, own = tl.zeros_like(ratio), tl.zeros_like(ratio)
    for k in range(SIZE):  # M S Mᵀ, M Mᵀ
        of_spread = tl.sum(tl.where(j == k, spread, 0.0), axis=2)
        of_ratio = tl.sum(tl.where(j == k, ratio, 0.0), axis=2)
        fitted += of_spread[:, :, None] * of_ratio[:, None, :]
        own += of_ratio[:, :, None] * of_ratio[:, None, :]
    on_diagonal = in_matrix & (i == j)
    change = ratio - tl.where(on_diagonal, 1.0, 0.0)
    log_change = _sum(tl.log(tl.where(on_diagonal, ratio, 1.0)))
    kl_cov = _sum(0.5 * change * change + tl.where(on_diagonal, change, 0.0)) - log_change
    fit_trace = _sum(tl.where(on_diagonal, fitted, 0.0))

    # The parts of its gradient: L⁻ᵀ of the lower triangles of M S Mᵀ - w and M Mᵀ - 1.
    fitted -= tl.where(on_diagonal, weight[:, None, None], 0.0)
    own -= tl.where(on_diagonal, 1.0, 0.0)
    for back in range(SIZE):
        k = SIZE - 1 - back
        diagonal = _diagonal(new, k, is_state, SIZE)[:, None]
        before = _row(new, k, is_state, SIZE, WIDTH)[:, :, None]
        fits = tl.sum(tl.where(i == k, fitted, 0.0), axis=1) / diagonal
        kls = tl.sum(tl.where(i == k, own, 0.0), axis=1) / diagonal
        fitted = tl.where(i == k, fits[:, None, :], fitted) - before * fits[:, None, :]
        own = tl.where(i == k, kls[:, None, :], own) - before * kls[:, None, :]
    cells = state[:, None, None] * (SIZE * SIZE) + cell
    tl.store(tril_parts + cells, tl.where(j <= i, fitted * share, 0.0), mask=in_matrix)
    kl_parts = tril_parts + members * states * (SIZE * SIZE)
    tl.store(kl_parts + cells, tl.where(j <= i, own * -share, 0.0), mask=in_matrix)

    constant = tl.full([], SIZE * HALF_LOG_2PI, loc.dtype.element_ty)
    on_diagonal = index * SIZE + index
    trace = tl.sum(tl.load(moment[:, None] + on_diagonal, mask=inside, other=0.0), axis=1)
    log_old = tl.sum(tl.log(tl.load(old[:, None] + on_diagonal, mask=inside, other=1.0)), axis=1)
    log_new = log_old - log_change
    fit_mean = -0.5 * (trace - moved) - weight * (log_old + constant)
    fit_cov = -0.5 * fit_trace - weight * (log_new + constant)
    entropy = tl.where(is_state, log_new + constant + 0.5 * SIZE, 0.0)
    sums += (member * tl.num_programs(0) + tl.program_id(0)) * 5
    tl.store(sums, tl.sum(fit_mean, axis=0) * share)
    tl.store(sums + 1, tl.sum(fit_cov, axis=0) * share)
    tl.store(sums + 2, tl.sum(kl_mean, axis=0) * share)
    tl.store(sums + 3, tl.sum(kl_cov, axis=0) * share)
    tl.store(sums + 4, tl.sum(entropy, axis=0) * share)


@triton.jit
def _gradient_kernel(
    loc_parts,  # [2, P, B, SIZE]
    tril_parts,  # [2, P, B, SIZE, SIZE]
    fit_mean,  # [P]
    fit_cov,  # [P]
    kl_mean,  # [P]
    kl_cov,  # [P]
    loc_grad,  # [P, B, SIZE]
    tril_grad,  # [P, B, SIZE, SIZE]
    count,  # P B SIZE
    members,  # P
    SIZE: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """The gradient from its parts: first all entries of ``loc``, then those of ``scale_tril``."""
    index = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    _add_parts(loc_parts, fit_mean, kl_mean, loc_grad, index, count, members)
    _add_parts(tril_parts, fit_cov, kl_cov, tril_grad, index - count, count * SIZE, members)


@triton.jit
def _add_parts(parts, fit, kl, gradient, index, count, members):
    inside = (index >= 0) & (index < count)
    member = index // (count // members)
    first = tl.load(fit + member, mask=inside, other=0.0) * tl.load(parts + index, mask=inside, other=0.0)
    second = tl.load(parts + count + index, mask=inside, other=0.0)
    tl.store(gradient + index, first + tl.load(kl + member, mask=inside, other=0.0) * second, mask=inside)


@triton.jit
def _sum(matrix):
    return tl.sum(tl.sum(matrix, axis=2), axis=1)


@triton.jit
def _diagonal(matrix, k, is_state, SIZE: tl.constexpr):
    """``L_kk``, and 1 where no state is."""
    return tl.load(matrix + k * SIZE + k, mask=is_state, other=1.0)


@triton.jit
def _column(matrix, k, is_state, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Column ``k`` of ``L`` below its diagonal, and zeros."""
    i = tl.arange(0, WIDTH)[None, :]
    return tl.load(matrix[:, None] + i * SIZE + k, mask=is_state[:, None] & (k < i) & (i < SIZE), other=0.0)


@triton.jit
def _row(matrix, k, is_state, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Row ``k`` of ``L`` before its diagonal, and zeros."""
    j = tl.arange(0, WIDTH)[None, :]
    return tl.load(matrix[:, None] + k * SIZE + j, mask=is_state[:, None] & (j < k), other=0.0)
