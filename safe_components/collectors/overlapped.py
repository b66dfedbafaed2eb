"""Collect the next batch in worker processes while the last one is being learnt from."""

from __future__ import annotations

import contextlib
import copy
import threading
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

    so that a loop costs about ``max(collecting, using)`` per batch instead of their sum. Batch k + 1 is
    collected while batch k is used: its actions come from the policy as it was after the use of batch
    k − 1, **one batch older** than in one process, never more. Workers act with a copy of the policy that
    changes between batches only (given to a TorchRL multi-process collector itself, a policy on the CPU is
    moved to memory shared with the workers, which would then see every optimiser step at once). With a seed
    the batches are the same in every run, whatever the machine's load, as long as what the loop does with
    them is.

    Iterate over it, and after an update call :meth:`update_policy_weights_`, as with any TorchRL collector.
    Each iteration starts where the last one stopped; there is no last batch.

    Args:
        make_env_fn: called without arguments in each worker, picklable; its environment, of N/workers copies
            on the CPU, is seeded as in `make_collector`.
        policy: maps a TensorDict with an observation to one with an action; the workers' copy is on the CPU.
        frames_per_batch: environment steps in a batch over all workers.
        num_workers: processes, at least 1.
        seed: of the workers' environments and actions.
        kwargs: handed to TorchRL's ``MultiSyncCollector``.

    Raises:
        ValueError: a number outside its range, or an environment seeded alike in every worker.
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

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Batches ``[N, T]``: the copies of all workers, by worker, and their consecutive steps."""
        while True:
            batch = self._wait(self._pending or self._request())
            self._pending = self._request()
            yield batch.reshape(-1, batch.shape[-1])

    def update_policy_weights_(self) -> None:
        """Have the policy's weights used from the next request on: when the next batch is asked for."""
        self._outdated = True

    def shutdown(self) -> None:
        """Wait for the batch under way, which is lost, and end the workers."""
        if self._pending is not None:
            with contextlib.suppress(ChildProcessError):
                self._wait(self._pending)
        threads = torch.get_num_threads()
        self._collector.shutdown()
        torch.set_num_threads(threads)  # TorchRL adds one for each worker

    def _request(self) -> Future[TensorDictBase]:
        weights = None
        if self._outdated:  # a copy, since the policy will change while it is handed over
            weights = TensorDict.from_module(self._policy).data.to("cpu").clone()
            self._outdated = False
        future: Future[TensorDictBase] = Future()
        # All that waits for a worker: where one dies with a lock or half a message, that is for ever.
        threading.Thread(target=self._fetch, args=(weights, future), daemon=True).start()
        return future

    def _fetch(self, weights: TensorDictBase | None, future: Future[TensorDictBase]) -> None:
        try:
            if weights is not None:
                self._collector.update_policy_weights_(weights)
            future.set_result(next(self._batches))
        except BaseException as error:  # raised where the batch is waited for
            future.set_exception(error)

    def _wait(self, pending: Future[TensorDictBase]) -> TensorDictBase:
        while True:
            try:
                return pending.result(timeout=1.0)
            except StillWaiting:
                if all(_alive(process) for process in self._collector.procs):
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
    except ValueError:  # TorchRL closes the others when it finds one dead
        return False
