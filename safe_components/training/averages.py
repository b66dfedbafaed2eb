"""Averages between two rows of metrics, computed without waiting for the device at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

__all__ = ["Averages", "EpisodeStatistics", "episode_summary"]


class Averages:
    """Running means of tensors, which are summed on their own device and read once.

    Example:
        >>> averages = Averages()
        >>> averages.add({"loss": torch.tensor(1.0)})
        >>> averages.add({"loss": torch.tensor(2.0)})
        >>> averages.pop()
        {'loss': 1.5}
        >>> averages.pop()
        {}
    """

    def __init__(self) -> None:
        # Totals and counts by device, names and lengths. Values added together need one addition.
        self._sums: dict[tuple[torch.device, tuple[tuple[str, int], ...]], tuple[torch.Tensor, int]] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one value of each name; a vector [m] is stored as ``name``, ``name_1``, ``name_2``, ..."""
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
                for index in range(length):
                    column = f"{name}_{index}" if index else name
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
    reward: torch.Tensor, cost: torch.Tensor, limits: Sequence[float], prefix: str = "episode"
) -> dict[str, float]:
    """Return means over episodes, under the names of ``metrics.csv``; they are NaN without an episode.

    Args:
        reward: undiscounted reward of each episode, [n].
        cost: undiscounted costs of each episode, [n, m].
        limits: limits on the cost of an episode, m numbers.
        prefix: "episode" for episodes of training, "eval" for those of evaluation.

    Returns:
        ``<prefix>_reward``, ``<prefix>_cost`` (then ``_cost_1``, ... for further signals) and
        ``<prefix>_violation_rate``, the share of episodes over at least one limit.

    Example:
        >>> episode_summary(torch.tensor([1.0, 3.0]), torch.tensor([[20.0], [40.0]]), limits=[25.0])
        {'episode_reward': 2.0, 'episode_cost': 30.0, 'episode_violation_rate': 0.5}
    """
    columns = [f"{prefix}_reward", f"{prefix}_cost"] + [f"{prefix}_cost_{i}" for i in range(1, len(limits))]
    over = (cost > torch.as_tensor(limits, dtype=cost.dtype)).any(-1).to(cost.dtype)
    means = torch.cat([reward[:, None], cost, over[:, None]], -1).mean(0).tolist()
    return dict(zip([*columns, f"{prefix}_violation_rate"], means, strict=True))


class EpisodeStatistics:
    """Means over the episodes that ended since the last row.

    The batches must hold ``("next", "done")`` and the sums ``("next", "episode_reward")`` and
    ``("next", "episode_cost")`` that TorchRL's ``RewardSum`` writes.

    Args:
        limits: limits on the cost of an episode, one per cost signal.
    """

    def __init__(self, limits: Sequence[float]) -> None:
        self._limits = tuple(limits)
        self._ended = [torch.empty(0, 1 + len(self._limits))]

    def add(self, batch: TensorDictBase) -> torch.Tensor:
        """Add the ``n`` episodes that end in ``batch``, of any size, and return their costs ``[n, m]``."""
        step = batch["next"]
        done = step["done"].squeeze(-1)
        ended = torch.cat([step["episode_reward"][done], step["episode_cost"][done]], -1).cpu()
        if ended.shape[0]:
            self._ended.append(ended)
        return ended[:, 1:]

    def pop(self) -> dict[str, float]:
        """Return the :func:`episode_summary` of these episodes and their number, ``episodes``."""
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
        return episode_summary(table[:, 0], table[:, 1:], self._limits) | {"episodes": float(len(table))}
