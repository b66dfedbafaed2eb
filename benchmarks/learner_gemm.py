"""The matrix products that one CVPO update needs, counted and timed alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PARTICLES, CRITICS, M_STEP = "particles", "critics", "M-step"
# Rows of one product and thread. More rows are taken in blocks of this size, whose results stay in cache.
# This speeds up narrow products, which would wait for memory, and does not change wide ones.
BLOCK_ROWS = 1024
# Rows per thread of the product that is timed in cache, and how often it is timed.
PEAK_ROWS, PEAK_TIMES = 256, 20


@dataclass(frozen=True)
class Sizes:
    """The sizes that determine the arithmetic of an update."""

    states: int = 300
    """B, states of a batch"""
    particles: int = 64
    """K, actions per state"""
    m_iterations: int = 5
    """policy steps per update"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of policy and critics"""
    observation: int = 60
    """o, entries of an observation"""
    actions: int = 2
    """a, entries of an action; the policy has a full covariance"""
    reward_critics: int = 2
    """members of the reward's ensemble"""
    cost_critics: int = 1
    """members of the cost's ensemble"""


@dataclass(frozen=True)
class Product:
    """``times`` products ``[rows, inner] x [inner, columns]``, each for ``members`` stacked weights.

    ``kind`` determines the operand that is stored transposed. A forward pass has no such operand. It is the
    left one for the gradient of the weights (``x^T g``), the right one for that of the input (``g W^T``).
    """

    phase: str
    rows: int
    inner: int
    columns: int
    members: int = 1
    times: int = 1
    kind: Literal["forward", "weight gradient", "input gradient"] = "forward"

    @property
    def flops(self) -> int:
        """A multiplication and an addition count as two."""
        return 2 * self.rows * self.inner * self.columns * self.members * self.times


def forward(phase: str, rows: int, sizes: Sequence[int], members: int = 1, times: int = 1) -> list[Product]:
    """Layers of a multi-layer perceptron on ``rows`` inputs."""
    return [Product(phase, rows, i, o, members, times) for i, o in itertools.pairwise(sizes)]


def backward(phase: str, rows: int, sizes: Sequence[int], members: int = 1, times: int = 1) -> list[Product]:
    """Gradients of all weights, and of every layer's input but the first's."""
    products = []
    for layer, (i, o) in enumerate(itertools.pairwise(sizes)):
        products.append(Product(phase, i, rows, o, members, times, "weight gradient"))
        if layer:
            products.append(Product(phase, rows, o, i, members, times, "input gradient"))
    return products


def update_products(sizes: Sizes) -> list[Product]:
    """List the networks' products of one update; no product is computed twice.

    - particles: the reference policy in ``B`` states; every critic on ``B * K`` actions, the state's part of
      the first layer once per state;
    - critics: next actions (one pass of the policy for reward and cost), target networks, forward, backward;
    - M-step: the policy forward and backward, ``m_iterations`` times.

    Products of ``[a, a]`` matrices per state are left out, as they are less than a hundredth of the work.
    """
    b, k, o, a = sizes.states, sizes.particles, sizes.observation, sizes.actions
    members = sizes.reward_critics + sizes.cost_critics
    policy = (o, *sizes.hidden_sizes, 2 * a + a * (a - 1) // 2)
    critic, later = (o + a, *sizes.hidden_sizes, 1), (*sizes.hidden_sizes, 1)
    return [
        *forward(PARTICLES, b, policy),
        Product(PARTICLES, b, o, sizes.hidden_sizes[0], members),
        Product(PARTICLES, b * k, a, sizes.hidden_sizes[0], members),
        *forward(PARTICLES, b * k, later, members),
        *forward(CRITICS, b, policy),
        *forward(CRITICS, b, critic, members, times=2),
        *backward(CRITICS, b, critic, members),
        *forward(M_STEP, b, policy, times=sizes.m_iterations),
        *backward(M_STEP, b, policy, times=sizes.m_iterations),
    ]


def flops(products: Sequence[Product], phase: str | None = None) -> int:
    """Count the floating-point operations of all products, or of one phase's."""
    return sum(product.flops for product in products if phase in (None, product.phase))


class GemmLimit:
    """Times the products alone, each as a whole, with results in memory that is reused.

    A product that is larger than the cache reads its operands from memory. An update that takes a few rows
    through all layers finds them in the cache, so a phase may take a little less time than its products.
    `peak` is the rate with all operands in the cache, which no update exceeds.

    Args:
        sizes: sizes of the update.
        threads: PyTorch's threads.
        clock: returns seconds.
        device: device of the operands; products are taken in blocks on the CPU only.
    """

    def __init__(
        self,
        sizes: Sizes,
        threads: int,
        clock: Callable[[], float] = time.perf_counter,
        device: torch.device | str = "cpu",
    ) -> None:
        self.products = update_products(sizes)
        self._clock = clock
        self._threads, self._device = threads, torch.device(device)
        device = self._device
        rows = BLOCK_ROWS * threads if device.type == "cpu" else None
        self._calls = [(product, _prepare(product, rows, device)) for product in self.products]

    def run(self) -> dict[str, float]:
        """Compute all products of one update; return seconds by phase."""
        seconds = dict.fromkeys((PARTICLES, CRITICS, M_STEP), 0.0)
        for product, call in self._calls:
            start = self._clock()
            for _ in range(product.times):
                call()
            seconds[product.phase] += self._clock() - start
        return seconds

    def peak(self) -> float:
        """Floating-point operations per second of a block of the largest product, in cache."""
        largest = max(self.products, key=lambda product: product.flops)
        rows = min(largest.rows, PEAK_ROWS * self._threads)
        left, right = torch.randn(rows, largest.inner), torch.randn(largest.inner, largest.columns)
        left, right = left.to(self._device), right.to(self._device)
        result = torch.empty(rows, largest.columns, device=self._device)
        times = []
        for _ in range(PEAK_TIMES):
            start = self._clock()
            for _ in range(PEAK_TIMES):
                torch.mm(left, right, out=result)
            times.append((self._clock() - start) / PEAK_TIMES)
        return 2.0 * rows * largest.inner * largest.columns / sorted(times)[PEAK_TIMES // 2]

    def once(self) -> None:
        """Compute all products of one update, without reading the clock."""
        for product, call in self._calls:
            for _ in range(product.times):
                call()


def _prepare(product: Product, block_rows: int | None, device: torch.device) -> Callable[[], object]:
    members = product.members
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(members, *shape, generator=generator).to(device)

    left, right = normal(product.rows, product.inner), normal(product.inner, product.columns)
    if product.kind == "weight gradient":
        left = left.mT.contiguous().mT
    elif product.kind == "input gradient":
        right = right.mT.contiguous().mT
    if product.kind == "weight gradient" or block_rows is None or product.rows <= block_rows:
        result = torch.empty(members, product.rows, product.columns, device=device)
        return lambda: torch.bmm(left, right, out=result)

    buffer = torch.empty(block_rows, product.columns)

    def blocks() -> None:
        for member in range(members):
            for rows in left[member].split(len(buffer)):
                torch.mm(rows, right[member], out=buffer[: len(rows)])

    return blocks


class CountFlops(TorchDispatchMode):
    """Counts the operations of every matrix product that PyTorch computes inside the context.

    PyTorch's ``FlopCounterMode`` asks every module for its truth value, and then parameters in a TensorDict
    raise an error.

    Attributes:
        total: floating-point operations so far.

    Example:
        >>> with CountFlops() as count:
        ...     _ = torch.ones(3, 4) @ torch.ones(4, 5)
        >>> count.total
        120
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation; if it is a product, add its operations."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
