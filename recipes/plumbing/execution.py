"""How an update is run: operation by operation, compiled, or as one CUDA graph."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from tensordict.utils import NestedKey

from safe_components.training import RunConfig

__all__ = ["ExecutionConfig", "GraphedUpdate", "execute"]

Learn = Callable[..., dict[str, torch.Tensor]]
# Evaluations of the E-step's dual where nobody may look whether it has converged. Started from the last
# batch's multipliers it needs about half of them: docs/gpu.md.
_NEWTON_ITERATIONS = 20


@dataclasses.dataclass(frozen=True)
class ExecutionConfig(RunConfig):
    """How the learner computes."""

    execution: Literal["eager", "compile", "graph"] = "eager"
    """of an update: operation by operation, through torch.compile, or as one CUDA graph (docs/gpu.md)"""
    scoring_precision: Literal["float32", "bfloat16"] = "float32"
    """of the products between hidden layers that score the particles (docs/performance.md)"""

    @property
    def waits(self) -> bool:
        """Whether the host may wait for the device inside an update, to look at a number."""
        return self.execution == "eager"

    @property
    def newton_iterations(self) -> int | None:
        """``fixed_iterations`` of the E-step's Newton solver; None lets it stop when it has converged."""
        return None if self.waits else _NEWTON_ITERATIONS


def execute(config: ExecutionConfig, *optimizers: torch.optim.Optimizer) -> Callable[[Learn], Learn]:
    """Decorator of an update that runs it as ``config.execution`` asks.

    The update takes one or several batches of constant size, trains on them what it finds in its closure, and
    returns metrics, tensors of constant shape.

    Args:
        config: of the run.
        optimizers: that take steps in the update.

    Raises:
        ValueError: for a graph without CUDA, or a part that computes on the host.
    """
    if config.waits:
        return lambda learn: learn
    if getattr(config, "estep_solver", None) == "slsqp":
        raise ValueError(
            f"estep_solver is slsqp, which SciPy solves on the host, and execution is {config.execution}: "
            "use --estep-solver newton, or --execution eager"
        )
    if config.execution == "compile":
        return torch.compile
    if torch.device(config.device).type != "cuda":
        raise ValueError(
            f"execution is graph, which is for CUDA, and device is {config.device}: "
            "use --device cuda, or --execution eager or compile"
        )
    return lambda learn: GraphedUpdate(learn, optimizers)


class GraphedUpdate:
    """An update that is recorded once as a CUDA graph, and replayed from then on.

    The first two calls run operation by operation and train as any other; the second is followed by the
    recording (TensorDict's ``CudaGraphModule``). A replay repeats the recorded kernels on the recorded
    memory. What changes between updates must therefore live in tensors that are changed in place:
    parameters, the optimisers' moments and step counts, multipliers, limits, the random generator's state.
    Python is not run again: its branches, counters and numbers stay as they were while recording.

    The batches' tensors are copied into the graph's own, the metrics leave it as one vector.

    Args:
        learn: see :func:`execute`; nothing in it may make the host wait for the device.
        optimizers: that take their steps in it, with their step counts on the device (``fused=True``).
    """

    def __init__(self, learn: Learn, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._learn, self._optimizers = learn, tuple(optimizers)
        # Entries of each batch, and names and shapes of the metrics; set by the first call.
        self._entries: list[tuple[list[NestedKey], torch.Size]] = []
        self._metrics: list[tuple[str, torch.Size]] = []
        with warnings.catch_warnings():
            # That TensorDicts will not be seen as trees by torch.utils._pytree: they are not passed.
            warnings.simplefilter("ignore")
            self._run = CudaGraphModule(self._packed)

    def __call__(self, *batches: TensorDictBase) -> dict[str, torch.Tensor]:
        """Train on batches of the sizes of the first call; returns the metrics, in float64.

        Raises:
            ValueError: if the number or size of the batches has changed.
        """
        sizes = [batch.batch_size for batch in batches]
        if not self._entries:
            self._entries = [(list(batch.keys(True, True)), batch.batch_size) for batch in batches]
        elif sizes != [size for _, size in self._entries]:
            raise ValueError(
                f"batches of sizes {[list(size) for size in sizes]} do not fit the recorded graph, which "
                f"was given {[list(size) for _, size in self._entries]}"
            )
        tensors = [
            batch.get(key) for batch, (keys, _) in zip(batches, self._entries, strict=True) for key in keys
        ]
        with warnings.catch_warnings():
            # The optimisers' first steps are not recorded, and they would ask why they must be capturable.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:  # a resumed checkpoint may have brought the flag along
                    group["capturable"] = True
            packed = self._run(*tensors)
        parts = packed.split([math.prod(shape) for _, shape in self._metrics])
        return {name: part.view(shape) for (name, shape), part in zip(self._metrics, parts, strict=True)}

    def _packed(self, *tensors: torch.Tensor) -> torch.Tensor:
        """``learn`` as a function of tensors; all metrics in one vector, which is copied at once."""
        left, batches = iter(tensors), []
        for keys, size in self._entries:
            # Fresh ones, so that what is written into them does not take the place of the graph's inputs.
            batch = TensorDict({}, batch_size=size, device=tensors[0].device)
            batches.append(batch.update({key: next(left) for key in keys}))
        values = self._learn(*batches)
        self._metrics = [(name, value.shape) for name, value in values.items()]
        return torch.cat([value.detach().reshape(-1).double() for value in values.values()])
