"""The fast twin of ``newton.py`` on a GPU: a whole solve as one Triton kernel.

Newton's fixed mode starts some 130 kernels per evaluation, and their starts take longer than their work. Here
one program (a thread block on one multiprocessor) solves one problem: it passes over the particles once per
evaluation, and keeps the unknowns, the derivatives and the trust radius in registers. It stops when its
problem has converged, where the tensor version stands still. ``tests/laws/test_newton_twins.py`` holds both
equal; Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernel on a CPU.
"""

# In a kernel, tuples grow and numbers are tensors; Triton itself has no types.
# mypy: disable-error-code="assignment, misc, no-untyped-call, no-untyped-def, untyped-decorator"
# mypy: disable-error-code="var-annotated"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from safe_components.estep.problem import ScaledProblem
from safe_components.estep.solve import Minimum

# The larger or smaller of two numbers is NaN where one of them is, as in PyTorch.
NAN = tl.constexpr(tl.PropagateNan.ALL)
# Particles per pass of the program's loop, and its warps: two particles for each of 512 threads.
_TILE, _WARPS = 1024, 16


def minimize_all(problem: ScaledProblem, start: Tensor, tol: float, max_iterations: int) -> Minimum:
    """Do what :class:`~safe_components.estep.NewtonDualSolver` does, for ``start`` ``[..., 1 + m]``."""
    dual, lead, n = problem.dual, start.shape[:-1], start.shape[-1]
    log_prior = dual.log_prior
    if log_prior is not None:
        log_prior = log_prior.expand(*lead, *log_prior.shape[-2:]).contiguous()
    numbers, weight, iterations = _minimize(
        dual.features.contiguous(),
        log_prior,
        dual.epsilon.expand(lead).contiguous(),
        dual.cost_limits.expand(*lead, n - 1).contiguous(),
        problem.lower.contiguous(),
        problem.upper.contiguous(),
        problem.unreachable_below.contiguous(),
        start.contiguous(),
        tol,
        max_iterations,
    )
    point, gradient, expectation, rest = numbers.split([n, n, n, 2], dim=-1)
    return Minimum(point, rest[..., 0], gradient, expectation, rest[..., 1], weight, iterations)


@torch.library.custom_op("safe_components::minimize_dual", mutates_args=())
def _minimize(
    features: Tensor,
    log_prior: Tensor | None,
    epsilon: Tensor,
    limits: Tensor,
    lower: Tensor,
    upper: Tensor,
    below: Tensor,
    start: Tensor,
    tol: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Start the kernel on contiguous tensors; an operator, which ``torch.compile`` does not open."""
    n, states, particles = features.shape[-3:]
    numbers, weight, iterations = _outputs(features, start)
    # Costs, particles and states are constants of the kernel: other sizes compile another one, in seconds.
    width = triton.next_power_of_2(particles)
    height = min(max(_TILE // width, 1), triton.next_power_of_2(states))
    with torch.cuda.device_of(features):  # Triton starts kernels on the current device
        _minimize_kernel[(iterations.numel(),)](
            features,
            features if log_prior is None else log_prior,
            epsilon,
            limits,
            lower,
            upper,
            below,
            start,
            numbers,
            weight,
            iterations,
            max_iterations,
            TOL=tol,
            STATES=states,
            PARTICLES=particles,
            N=n,
            HAS_PRIOR=log_prior is not None,
            HEIGHT=height,
            WIDTH=width,
            num_warps=_WARPS,
            num_stages=1,
        )
    return numbers, weight, iterations


def _outputs(features: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    numbers = start.new_empty(*start.shape[:-1], 3 * start.shape[-1] + 2)
    weight = features.new_empty(*start.shape[:-1], *features.shape[-2:])
    return numbers, weight, start.new_empty(start.shape[:-1], dtype=torch.long)


@_minimize.register_fake
def _shapes(
    features: Tensor,
    log_prior: Tensor | None,
    epsilon: Tensor,
    limits: Tensor,
    lower: Tensor,
    upper: Tensor,
    below: Tensor,
    start: Tensor,
    tol: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(features, start)


@triton.jit
def _minimize_kernel(
    features,  # [P, N, B, K]
    log_prior,  # [P, B, K]
    epsilon,  # [P]
    limits,  # [P, N - 1]
    lower,  # [P, N]
    upper,  # [P, N]
    below,  # [P]
    start,  # [P, N]
    numbers,  # [P, 3 N + 2]
    weight,  # [P, B, K]
    iterations,  # [P]
    max_iterations,
    TOL: tl.constexpr,
    STATES: tl.constexpr,  # B
    PARTICLES: tl.constexpr,  # K
    N: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``NewtonDualSolver.minimize`` of the problem that is this program's number."""
    index = tl.program_id(0).to(tl.int64)
    entries = STATES * PARTICLES
    features += index * entries * N
    log_prior += index * entries
    weight += index * entries
    numbers += index * (3 * N + 2)
    ball = tl.load(epsilon + index)
    least = tl.load(below + index)
    limit, low, high, point = (), (), (), ()
    for i in tl.static_range(N):
        low += (tl.load(lower + index * N + i),)
        high += (tl.load(upper + index * N + i),)
        point += (tl.load(start + index * N + i),)
    for i in tl.static_range(N - 1):
        limit += (tl.load(limits + index * (N - 1) + i),)

    value, gradient, mean, hessian = _dual_terms(
        features, log_prior, weight, point, ball, limit,
        STATES, PARTICLES, N, HAS_PRIOR, HEIGHT, WIDTH, True,
    )  # fmt: skip
    radius = tl.full([], 1.0, tl.float64)
    spent = 1
    done = (_kkt_residual(gradient, point, low, high, ball, N) <= TOL) | (value < least)
    while (spent <= max_iterations) & (done == 0):
        step, size = _newton_step(point, gradient, hessian, low, high, radius, N)
        trial = ()
        promised = tl.full([], 0.0, tl.float64)
        total = tl.full([], 0.0, tl.float64)
        for i in tl.static_range(N):
            to = tl.minimum(tl.maximum(point[i] + step[i], low[i], NAN), high[i], NAN)
            promised += gradient[i] * (to - point[i])
            total += point[i]
            trial += (to,)
        new_value, new_gradient, mean, new_hessian = _dual_terms(
            features, log_prior, weight, trial, ball, limit, STATES, PARTICLES,
            N, HAS_PRIOR, HEIGHT, WIDTH, True,
        )  # fmt: skip
        rounding = 1e-14 * (1.0 + tl.abs(value) + total)
        accept = new_value <= value + 1e-4 * promised + rounding
        point = _choose(accept, trial, point, N)
        gradient = _choose(accept, new_gradient, gradient, N)
        hessian = _choose(accept, new_hessian, hessian, N * (N + 1) // 2)
        value = tl.where(accept, new_value, value)
        wider = tl.where(radius > 0.25, 1.0, 4.0 * radius)
        radius = tl.where(accept, wider, 0.25 * tl.minimum(radius, size, NAN))
        spent += 1
        done = (_kkt_residual(gradient, point, low, high, ball, N) <= TOL) | (value < least)

    value, gradient, mean, hessian = _dual_terms(
        features, log_prior, weight, point, ball, limit,
        STATES, PARTICLES, N, HAS_PRIOR, HEIGHT, WIDTH, False,
    )  # fmt: skip
    for i in tl.static_range(N):
        tl.store(numbers + 2 * N + i, mean[i])
        tl.store(numbers + i, point[i])
        tl.store(numbers + N + i, gradient[i])
    tl.store(numbers + 3 * N, value)
    tl.store(numbers + 3 * N + 1, _kkt_residual(gradient, point, low, high, ball, N))
    tl.store(iterations + index, spent)


@triton.jit
def _dual_terms(
    features,
    log_prior,
    weights,
    point,
    ball,
    limit,
    STATES: tl.constexpr,
    PARTICLES: tl.constexpr,
    N: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HESSIAN: tl.constexpr,
):
    """``dual.dual_terms``: value, gradient, expectation, and the upper triangle of the Hessian.

    Without the Hessian, the weights are stored.
    """
    theta = (1.0 / point[0],)
    for i in tl.static_range(1, N):
        theta += (-point[i] / point[0],)
    rows, column = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)[None, :]
    log_sum, highest_sum, reward_sum = (
        tl.zeros([HEIGHT], tl.float64),
        tl.zeros([HEIGHT], tl.float64),
        tl.zeros([HEIGHT], tl.float64),
    )
    sums, products = (), ()
    for _ in tl.static_range(N):
        sums += (tl.zeros([HEIGHT], tl.float64),)
    if HESSIAN:
        for _ in tl.static_range(N * (N + 1) // 2):
            products += (tl.zeros([HEIGHT, WIDTH], tl.float64),)

    for first in range(0, STATES, HEIGHT):
        row = first + rows
        inside = (row < STATES)[:, None] & (column < PARTICLES)
        offset = row[:, None] * PARTICLES + column
        reward = tl.load(features + offset, mask=inside, other=0.0)
        z = theta[0] * reward
        costs = ()
        for i in tl.static_range(1, N):
            cost = tl.load(features + i * STATES * PARTICLES + offset, mask=inside, other=0.0)
            z += theta[i] * cost
            costs += (cost,)
        if HAS_PRIOR:
            prior = tl.load(log_prior + offset, mask=inside, other=0.0)
            z += prior
        z = tl.where(column < PARTICLES, z, -float("inf"))
        highest = tl.max(z, axis=1)
        z -= highest[:, None]
        weight = tl.where(inside, tl.exp(z), 0.0)
        if HAS_PRIOR:
            excluded = prior == -float("inf")
            z = tl.where(excluded, 0.0, z - tl.where(excluded, 0.0, prior))
        x = (tl.where(inside, z, 0.0),)
        for i in tl.static_range(1, N):
            x += (costs[i - 1],)
        total = tl.where(row < STATES, tl.sum(weight, axis=1), 1.0)
        weight *= (1.0 / total)[:, None]
        log_sum += tl.where(row < STATES, tl.log(total), 0.0)
        highest_sum += tl.where(row < STATES, highest, 0.0)
        reward_sum += tl.sum(weight * reward, axis=1)
        centered, new_sums = (), ()
        for i in tl.static_range(N):
            of_state = tl.sum(weight * x[i], axis=1)
            new_sums += (sums[i] + of_state,)
            centered += (x[i] - of_state[:, None],)
        sums = new_sums
        if HESSIAN:
            new_products = ()
            for i in tl.static_range(N):
                for j in tl.static_range(i, N):
                    old = products[i * N - i * (i - 1) // 2 + j - i]
                    new_products += (old + weight * centered[i] * centered[j],)
            products = new_products
        else:
            tl.store(weights + offset, weight, mask=inside)

    slope = ball + tl.sum(log_sum, axis=0) / STATES
    if not HAS_PRIOR:
        slope -= tl.log(tl.full([], PARTICLES, tl.float64))
    value = point[0] * (slope + tl.sum(highest_sum, axis=0) / STATES)
    mean = (tl.sum(reward_sum, axis=0) / STATES,)
    gradient = (slope - tl.sum(sums[0], axis=0) / STATES,)
    for i in tl.static_range(1, N):
        cost = tl.sum(sums[i], axis=0) / STATES
        mean += (cost,)
        gradient += (limit[i - 1] - cost,)
        value += point[i] * limit[i - 1]
    hessian = ()
    if HESSIAN:
        for i in tl.static_range(N * (N + 1) // 2):
            hessian += (tl.sum(products[i]) / STATES / point[0],)
    return value, gradient, mean, hessian


@triton.jit
def _newton_step(point, gradient, hessian, low, high, radius, N: tl.constexpr):
    """``newton._newton_step``, with the upper triangle of the Hessian."""
    free, diagonal = (), ()
    for i in tl.static_range(N):
        moves = tl.where(gradient[i] > 0.0, point[i] > low[i], point[i] < high[i])
        curvature = hessian[i * N - i * (i - 1) // 2]
        free += (moves,)
        diagonal += (tl.where(moves, curvature * (1.0 + 1e-12) + 1e-120, 1.0),)
    rows = ()  # [N, N + 1]: the Hessian of the free multipliers, and their gradient
    for i in tl.static_range(N):
        for j in tl.static_range(N):
            if i == j:
                rows += (diagonal[i],)
            elif i < j:
                rows += (tl.where(free[i] & free[j], hessian[i * N - i * (i - 1) // 2 + j - i], 0.0),)
            else:
                rows += (rows[j * (N + 1) + i],)
        rows += (tl.where(free[i], gradient[i], 0.0),)
    for i in tl.static_range(1, N):
        eliminated = ()
        for j in tl.static_range(N):
            for k in tl.static_range(N + 1):
                scaled = rows[i * (N + 1) + k] / rows[i * (N + 1) + i]
                if i == j:
                    eliminated += (scaled,)
                else:
                    eliminated += (rows[j * (N + 1) + k] - rows[j * (N + 1) + i] * scaled,)
        rows = eliminated
    eta = point[0]
    reach = radius * eta
    left = tl.maximum(rows[0], 1e-10 * diagonal[0], NAN)
    move = tl.maximum(-rows[N] / left, tl.maximum(low[0] - eta, -0.9 * reach, NAN), NAN)
    move = tl.minimum(move, 9.0 * reach, NAN)
    size = tl.maximum(move / 9.0, move / -0.9, NAN) / eta
    step = (move,)
    for i in tl.static_range(1, N):
        other = -rows[i * (N + 1) + N] - rows[i * (N + 1)] * move
        other = tl.where(tl.where(other > 0.0, point[i] < high[i], point[i] > low[i]), other, 0.0)
        size = tl.maximum(size, tl.abs(other) / (10.0 + 10.0 * point[i]), NAN)
        step += (other,)
    share = tl.where(size > radius, radius / size, 1.0)
    scaled_step = ()
    for i in tl.static_range(N):
        scaled_step += (step[i] * share,)
    return scaled_step, size * share


@triton.jit
def _kkt_residual(gradient, point, low, high, ball, N: tl.constexpr):
    """``kkt.kkt_residual``."""
    residual = -gradient[0] / ball
    for i in tl.static_range(N):
        unit = tl.minimum(tl.maximum(high[i], 1e-300, NAN), 1.0, NAN)
        room = (high[i] - point[i]) / unit
        factor = tl.where(gradient[i] > 0.0, point[i] - low[i], tl.where(room > 1.0, -1.0, -room))
        residual = tl.maximum(residual, gradient[i] * factor, NAN)
    return residual


@triton.jit
def _choose(condition, this, other, N: tl.constexpr):
    """``torch.where`` for tuples of numbers."""
    chosen = ()
    for i in tl.static_range(N):
        chosen += (tl.where(condition, this[i], other[i]),)
    return chosen
