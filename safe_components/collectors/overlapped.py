"""Collect the next batch in worker processes while the learner uses the last one."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillWaiting  # before Python 3.11 not the built-in one
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from safe_components.collectors.make_collector import make_collector


class OverlappedCollector:
    """Batches of a ``MultiSyncCollector``, each requested before the one before it is handed out.

        request 1 | wait | request 2 | use 1 | wait | request 3 | use 2 | wait | ...

    A loop then costs about ``max(collecting, using)`` per batch instead of their sum. Workers collect batch
    k + 1 while the loop uses batch k. Their actions come from the policy after the use of batch k − 1. That
    policy is exactly **one batch older** than in one process. If the loop is deterministic, a seed gives the
    same batches in every run, whatever the machine's load.

    Workers act with a copy of the policy that only changes between batches. Without the copy, TorchRL's
    multi-process collectors would move a policy on the CPU to memory shared with the workers. The workers
    would then see every optimizer step at once.

    Iterate over it, and after an update call ``update_policy_weights_``, as with any TorchRL collector.
    Each iteration starts where the last one stopped. There is no last batch, unless ``stopping`` tells that
    the loop was asked to stop while the workers do not deliver the next one.

    Args:
        make_env_fn: called without arguments in each worker, picklable. Its environment, of N/workers copies
            on the CPU, is seeded as in ``make_collector``.
        policy: maps a TensorDict with an observation to one with an action. The workers' copy is on the CPU.
        frames_per_batch: environment steps in a batch over all workers.
        num_workers: number of processes, at least 1.
        seed: seed of the workers' environments and actions.
        stopping: tells whether the loop was asked to stop. The iteration then ends without the next batch if
            that takes more than ``patience``, for example because a worker is frozen.
        patience: see ``stopping``, in seconds.
        kwargs: handed to TorchRL's ``MultiSyncCollector``.

    Raises:
        ValueError: if a number is out of range, or if every worker would have the same seed.
        ChildProcessError: while iterating, if a worker has died.

    Example:
        >>> import functools
        >>> from safe_components.envs import make_env
        >>> from safe_components.policies import gaussian_policy
        >>> make = functools.partial(make_env, "PointCircle", num_envs=3)
        >>> policy = gaussian_policy(4, action_low=[-1.0, -1.0], action_high=[1.0, 1.0])
        >>> def learn():  # in a script, start this under: if __name__ == "__main__"
        ...     collector = OverlappedCollector(make, policy, frames_per_batch=30, num_workers=2, seed=0)
        ...     for batch in collector:  # [6, 5]
        ...         ...
        ...         collector.update_policy_weights_()
    """

    def __init__(
        self,
        make_env_fn: Callable[[], EnvBase],
        policy: TensorDictModuleBase,
        *,
        frames_per_batch: int,
        num_workers: int,
        seed: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
        patience: float = 10.0,
        **kwargs: Any,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, must be at least 1")
        self._policy = policy
        self._collector = make_collector(
            make_env_fn,
            copy.deepcopy(policy).to("cpu"),
            frames_per_batch=frames_per_batch,
            num_workers=num_workers,
            seed=seed,
            **kwargs,
        )
        self._batches = iter(self._collector)
        self._pending: Future[TensorDictBase] | None = None
        self._outdated = False
        self._stopping, self._patience = stopping, patience
        self._asked: float | None = None  # the time at which the loop was first seen to stop

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Yield batches ``[N, T]``: the copies of all workers, by worker, and their consecutive steps."""
        self._pending = self._pending or self._request()
        while (batch := self._wait(self._pending, self._late)) is not None:
            self._pending = self._request()
            yield batch.reshape(-1, batch.shape[-1])

    def update_policy_weights_(self) -> None:
        """Use the policy's new weights from the next request on, when the loop asks for its next batch."""
        self._outdated = True

    def shutdown(self, timeout: float = 10.0) -> None:
        """Discard the requested batch and end the workers.

        Args:
            timeout: seconds after which workers that have not delivered the batch, such as frozen ones, are
                killed.
        """
        end = time.monotonic() + timeout
        if self._pending is not None:
            try:
                delivered = self._wait(self._pending, lambda: self._late() or time.monotonic() > end)
            except ChildProcessError:
                delivered = None
            for process in self._collector.procs if delivered is None else ():
                with contextlib.suppress(ValueError):  # TorchRL has closed it
                    process.kill()
        threads = torch.get_num_threads()
        self._collector.shutdown()
        torch.set_num_threads(threads)  # TorchRL adds one for each worker

    def _request(self) -> Future[TensorDictBase]:
        weights = None
        if self._outdated:  # a copy, since the policy will change while it is handed over
            weights = TensorDict.from_module(self._policy).data.to("cpu").clone()
            self._outdated = False
        future: Future[TensorDictBase] = Future()
        # Only this thread waits for workers. If one dies with a lock or half a message, the wait never ends.
        threading.Thread(target=self._fetch, args=(weights, future), daemon=True).start()
        return future

    def _fetch(self, weights: TensorDictBase | None, future: Future[TensorDictBase]) -> None:
        try:
            if weights is not None:
                self._collector.update_policy_weights_(weights)
            future.set_result(next(self._batches))
        except BaseException as error:  # ``_wait`` raises it
            future.set_exception(error)

    def _late(self) -> bool:
        """Tell whether the loop was asked to stop longer ago than it waits for a batch."""
        if self._asked is None and self._stopping():
            self._asked = time.monotonic()
        return self._asked is not None and time.monotonic() - self._asked > self._patience

    def _wait(self, pending: Future[TensorDictBase], late: Callable[[], bool]) -> TensorDictBase | None:
        """Return the batch; None if it is late.

        Raises:
            ChildProcessError: if a worker has died.
        """
        while True:
            try:
                return pending.result(timeout=1.0)
            except StillWaiting:
                if all(_alive(process) for process in self._collector.procs):
                    if late():
                        return None
                    continue
                reason = "it did not answer"
            except RuntimeError as error:
                reason = str(error)
            raise ChildProcessError(
                f"a process that collects has died; what it had to say is printed above ({reason})"
            )


def _alive(process: BaseProcess) -> bool:
    try:
        return process.is_alive()
    except ValueError:  # TorchRL closes the other workers when it finds one dead
        return False
