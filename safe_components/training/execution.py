"""Execution of an update: operation by operation, compiled, or as one CUDA graph."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey

from safe_components.training.graph import GraphedCall
from safe_components.training.learner import Learner

__all__ = ["ExecutionConfig", "GraphedUpdate", "Training", "execute", "run_alone"]

Update = Callable[..., dict[str, torch.Tensor]]
L = TypeVar("L", bound=Learner)
# It yields its learner first, and is sent None. Then it yields the batches of one update after another, and
# is sent the update's metrics.
Training: TypeAlias = Generator[L | tuple[TensorDictBase, ...], Any, None]


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """Execution of the learner's update (docs/gpu.md)."""

    mode: Literal["eager", "compile", "graph"] = "eager"
    """run an update operation by operation, through torch.compile, or as one CUDA graph"""
    scoring_precision: Literal["float32", "bfloat16"] = "float32"
    """precision of the products between hidden layers when particles are scored (docs/performance.md)"""

    @property
    def waits(self) -> bool:
        """Whether the host may wait for the device inside an update in order to read a number."""
        return self.mode == "eager"


def execute(config: ExecutionConfig, learner: Learner, device: torch.device) -> Update:
    """Return ``learner.update`` in the form that ``config.mode`` asks for.

    The update takes one or several batches of constant size. It returns metrics, which are tensors of
    constant shape.

    Args:
        config: execution group of the configuration.
        learner: learner whose optimizers take their steps in the update. A module that waits for the device
            has the attribute ``synchronizes``.
        device: device of the learner.

    Raises:
        ValueError: if a graph is asked for without CUDA, or if a module waits for the device.
    """
    update: Update = learner.update
    if config.waits:
        return update
    waiting = [type(m).__name__ for m in learner.modules() if getattr(m, "synchronizes", False)]
    if waiting:  # the innermost comes last
        raise ValueError(
            f"execution.mode is {config.mode}, but {waiting[-1]} computes on the host: use another part "
            "(such as --estep.solver newton, --policy tanh), or --execution.mode eager"
        )
    if config.mode == "compile":
        return torch.compile(update)
    if device.type != "cuda":
        raise ValueError(
            f"execution.mode is graph, which needs CUDA, but device is {device}: "
            "use --device cuda, or --execution.mode eager or compile"
        )
    return GraphedUpdate(update, list(learner.optimizers.values()))


def run_alone(training: Training[L], config: ExecutionConfig) -> L:
    """Run a training to its end: make each update that it asks for, and return its learner.

    A training asks for its updates instead of making them, so that `Population` can make those of several
    learners at once. An error in an update is raised where the training asked for it.

    Args:
        training: generator that yields its learner, and then the batches of each update. It receives the
            metrics of the update.
        config: execution group of the configuration.

    Raises:
        ValueError: as :func:`execute`, before anything is trained.

    Example:
        >>> class Count(Learner):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.total = torch.nn.Parameter(torch.zeros(()))
        ...     def update(self, batch):
        ...         self.total.data += batch["x"].sum()
        ...         return {"total": self.total.detach()}
        >>> def train():
        ...     yield Count()
        ...     for x in (1.0, 2.0):
        ...         print((yield (TensorDict(x=torch.tensor(x)),)))
        >>> learner = run_alone(train(), ExecutionConfig())
        {'total': tensor(1.)}
        {'total': tensor(3.)}
    """
    learner: Any = next(training)
    update = execute(config, learner, next(learner.parameters()).device)
    try:
        batches: Any = next(training)
        while True:
            try:
                metrics = update(*batches)
            except BaseException as error:
                batches = training.throw(error)
            else:
                batches = training.send(metrics)
    except StopIteration:
        return learner  # type: ignore[no-any-return]


class GraphedUpdate:
    """An update that is recorded once as a CUDA graph, and replayed from then on (`GraphedCall`).

    The first two calls run operation by operation and train like any other call. The recording follows the
    second call. A replay repeats the recorded kernels on the recorded
    memory. All state that changes between updates must therefore be held in tensors that are changed in
    place: parameters, the optimizers' moments and step counts, multipliers, limits, and the state of the
    random generator. Python code does not run again, so its branches, counters and numbers keep their values
    from the recording.

    The tensors of the batches are copied into those of the graph. The metrics are returned through one
    vector. The host waits for the device only when it reads a metric.

    Args:
        update: function as in :func:`execute`; no operation in it may make the host wait for the device.
        optimizers: optimizers that take their steps in the update, with their step counts on the device
            (``fused=True``).
    """

    def __init__(self, update: Update, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._update, self._optimizers = update, tuple(optimizers)
        # Keys and size of each batch, and names and shapes of the metrics. The first call sets them.
        self._entries: list[tuple[list[NestedKey], torch.Size]] = []
        self._metrics: list[tuple[str, torch.Size]] = []
        self._run = GraphedCall(self._packed)

    def __call__(self, *batches: TensorDictBase) -> dict[str, torch.Tensor]:
        """Train on batches of the same sizes as in the first call, and return the metrics in float64.

        Raises:
            ValueError: if the number or the sizes of the batches have changed.
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
            # The optimizers warn about capturable=True in steps that are not recorded, such as the first.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:  # a checkpoint may hold another value of the flag
                    group["capturable"] = True
            packed = self._run(*tensors)
        parts = torch.split(packed, [math.prod(shape) for _, shape in self._metrics])
        return {name: part.view(shape) for (name, shape), part in zip(self._metrics, parts, strict=True)}

    def _packed(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Call ``update`` with batches made of ``tensors``, and return all metrics in one vector."""
        left, batches = iter(tensors), []
        for keys, size in self._entries:
            # New TensorDicts, so that entries that the update writes do not replace the inputs of the graph.
            batch = TensorDict({}, batch_size=size, device=tensors[0].device)
            batches.append(batch.update({key: next(left) for key in keys}))
        values = self._update(*batches)
        self._metrics = [(name, value.shape) for name, value in values.items()]
        return torch.cat([value.detach().reshape(-1).double() for value in values.values()])
