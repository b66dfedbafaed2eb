"""Find and read the costs in what a Gymnasium step returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np


@dataclass(frozen=True)
class CostReader:
    """Read the m costs from the tuples that n calls of ``env.step`` returned.

    A 6-tuple ``(observation, reward, cost, terminated, truncated, info)`` has the cost as its third value. A
    5-tuple has it in ``info``. Each key holds a Python or NumPy number, or a vector. The values are joined in
    the order of the keys.

    Args:
        names: entries of ``info``; empty for the third value of a 6-tuple.
        size: m.

    Example:
        >>> read = CostReader(("cost_a", "cost_b"), 3)
        >>> read([(0.0, 1.0, False, False, {"cost_a": 1, "cost_b": [0.5, 0.25]})]).tolist()
        [[1.0, 0.5, 0.25]]
    """

    names: tuple[str, ...]
    size: int

    def __call__(self, results: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return the costs [n, m]."""
        if not self.names:
            values = [result[2] for result in results]
        else:
            try:
                if len(self.names) == 1:
                    name = self.names[0]
                    values = [result[-1][name] for result in results]
                else:
                    values = [
                        np.concatenate([np.reshape(result[-1][name], -1) for name in self.names])
                        for result in results
                    ]
            except KeyError as missing:
                raise KeyError(f"step's info has no {missing}, which it had at construction") from None
        return np.array(values, float).reshape(len(results), self.size)


def probe_costs(env: gymnasium.Env[Any, Any], names: tuple[str, ...]) -> CostReader:
    """Take one step, find the costs in it and return their reader.

    Raises:
        ValueError: if ``names`` is empty, or if a name is not in the step's ``info``.
    """
    if not names:
        raise ValueError("cost_keys is empty: name at least one entry of info, for example ('cost',)")
    env.reset(seed=0)
    env.action_space.seed(0)
    result = env.step(env.action_space.sample())
    info = result[-1]
    if len(result) == 6 and names == ("cost",):
        return CostReader((), int(np.size(result[2])))
    missing = [name for name in names if name not in info]
    if missing:
        kind = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        numbers = sorted(key for key, value in info.items() if np.asarray(value).dtype.kind in "biuf")
        raise ValueError(
            f"{kind} reports no cost {missing[0]!r}: its step's info must hold it (a number or a vector); "
            f"numeric entries found: {numbers or 'none'}. "
            "Name others with cost_keys=(...), or wrap the environment so that it writes info['cost']"
        )
    return CostReader(names, sum(int(np.size(info[name])) for name in names))
