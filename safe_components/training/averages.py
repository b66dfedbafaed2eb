"""Averages between two rows of metrics, computed without waiting for the device at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from safe_components.training.options import cost_suffixes

__all__ = ["Averages", "EpisodeStatistics", "episode_summary"]


class Averages:
    """Running means of tensors, which are summed on their own device and read once.

    Args:
        suffixes: ends of the names of a vector with one element per cost, from `cost_suffixes`. Other vectors
            are numbered.

    Example:
        >>> averages = Averages()
        >>> averages.add({"loss": torch.tensor(1.0)})
        >>> averages.add({"loss": torch.tensor(2.0)})
        >>> averages.pop()
        {'loss': 1.5}
        >>> averages.pop()
        {}
    """

    def __init__(self, suffixes: Sequence[str] = ()) -> None:
        self._suffixes = tuple(suffixes)
        # Totals and counts by device, names and lengths. Values added together need one addition.
        self._sums: dict[tuple[torch.device, tuple[tuple[str, int], ...]], tuple[torch.Tensor, int]] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one value of each name; a vector [m] is stored under one name per cost."""
        by_device: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
        for name, value in values.items():
            row = value.detach().reshape(-1).to(torch.float64)
            by_device.setdefault(value.device, []).append((name, row))
        for device, rows in by_device.items():
            together = torch.cat([row for _, row in rows])
            key = device, tuple((name, row.numel()) for name, row in rows)
            total, count = self._sums.get(key, (0.0, 0))
            self._sums[key] = together + total, count + 1

    def pop(self) -> dict[str, float]:
        """Return the means since the last call as numbers; this call waits for the device."""
        means = self.peek()
        self._sums = {}
        return means

    def peek(self) -> dict[str, float]:
        """Return the means since the last :meth:`pop` without beginning anew."""
        sums: dict[str, tuple[float, int]] = {}
        for (_, names), (total, count) in self._sums.items():
            numbers = iter(total.tolist())  # one transfer for values added together
            for name, length in names:
                suffixes = self._suffixes if length == len(self._suffixes) else cost_suffixes((), length)
                for index in range(length):
                    column = name + suffixes[index]
                    before, counted = sums.get(column, (0.0, 0))
                    sums[column] = before + next(numbers), counted + count
        return {column: total / count for column, (total, count) in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last :meth:`pop`."""
        sums = [(str(device), *rest, *sum_) for (device, *rest), sum_ in self._sums.items()]
        return {"sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums."""
        self._sums = {
            (torch.device(device), names): (total.to(device), count)
            for device, names, total, count in state["sums"]
        }


def episode_summary(
    ended: Mapping[str, torch.Tensor],
    limits: Sequence[float],
    prefix: str = "episode",
    suffixes: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return means over episodes, under the names of ``metrics.csv``; they are NaN without an episode.

    Args:
        ended: ``reward`` [n], ``cost`` [n, m] and ``length`` [n] of episodes, as `evaluate` returns them.
        limits: limits on the cost of an episode, m numbers.
        prefix: "episode" for episodes of training, "eval" for those of evaluation.
        suffixes: ends of the names of the costs, from `cost_suffixes`; None numbers them.

    Returns:
        ``<prefix>_reward``, ``<prefix>_cost`` with each suffix, ``<prefix>_violation_rate`` (the share of
        episodes over at least one limit) and ``<prefix>_length``.

    Example:
        >>> ended = {"reward": torch.tensor([1.0, 3.0]), "cost": torch.tensor([[20.0], [40.0]])}
        >>> episode_summary(ended | {"length": torch.tensor([50.0, 30.0])}, limits=[25.0])
        {'episode_reward': 2.0, 'episode_cost': 30.0, 'episode_violation_rate': 0.5, 'episode_length': 40.0}
    """
    names = cost_suffixes((), len(limits)) if suffixes is None else suffixes
    cost = ended["cost"]
    over = (cost > torch.as_tensor(limits, dtype=cost.dtype)).any(-1).to(cost.dtype)
    columns = [ended["reward"][:, None], cost, over[:, None], ended["length"][:, None]]
    means = torch.cat(columns, -1).mean(0).tolist()
    quantities = ["reward", *(f"cost{name}" for name in names), "violation_rate", "length"]
    return {f"{prefix}_{quantity}": mean for quantity, mean in zip(quantities, means, strict=True)}


class EpisodeStatistics:
    """Means over the episodes that ended since the last row.

    The batches must hold ``("next", "done")``, the sums ``("next", "episode_reward")`` and
    ``("next", "episode_cost")`` that TorchRL's ``RewardSum`` writes, and the ``("next", "step_count")``
    of its ``StepCounter``.

    Args:
        limits: limits on the cost of an episode, one per cost signal.
        suffixes: ends of the names of the costs, from `cost_suffixes`; None numbers them.
        prefix: first part of the names of the means; see `episode_summary`.
    """

    def __init__(
        self, limits: Sequence[float], suffixes: Sequence[str] | None = None, prefix: str = "episode"
    ) -> None:
        self._limits, self._suffixes, self._prefix = tuple(limits), suffixes, prefix
        self._ended = [torch.empty(0, 2 + len(self._limits))]

    def add(self, batch: TensorDictBase) -> torch.Tensor:
        """Add the ``n`` episodes that end in ``batch``, of any size, and return them.

        Returns:
            ``[n, 2 + m]``: reward, costs and length in steps of the policy, on the CPU, in the order of the
            batch's elements.
        """
        step = batch["next"]
        done = step["done"].squeeze(-1)
        sums, length = (step["episode_reward"], step["episode_cost"]), step["step_count"]
        ended = torch.cat([*(x[done] for x in sums), length[done].to(sums[0].dtype)], -1).cpu()
        if ended.shape[0]:
            self._ended.append(ended)
        return ended

    def pop(self) -> dict[str, float]:
        """Return the :func:`episode_summary` of these episodes and their number, ``<prefix>s``."""
        summary = self.peek()
        self._ended = self._ended[:1]
        return summary

    def state_dict(self) -> dict[str, Any]:
        """Return the reward and costs of these episodes."""
        return {"ended": torch.cat(self._ended)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore these episodes."""
        self._ended = [*self._ended[:1], state["ended"]]

    def peek(self) -> dict[str, float]:
        """Return the summary of :meth:`pop` without beginning anew."""
        table = torch.cat(self._ended)
        ended = {"reward": table[:, 0], "cost": table[:, 1:-1], "length": table[:, -1]}
        summary = episode_summary(ended, self._limits, self._prefix, self._suffixes)
        return summary | {f"{self._prefix}s": float(len(table))}
