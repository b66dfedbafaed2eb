"""Read and check what the steps of Gymnasium environments return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from safe_components.envs.gymnasium_spaces import NUMBERS, ObservationReader, as_numbers, described

# Where an environment that resets itself leaves the last observation and info of the episode that has ended.
_FINAL_OBSERVATION = ("final_obs", "final_observation", "terminal_observation")
_FINAL_INFO = "final_info"


class UnusableValue(ValueError):
    """What a call returned cannot be used; ``row`` is the number of the call."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


class Steps(NamedTuple):
    """What n steps returned: observations [n, o], rewards [n], costs [n, m], and flags [n, 2].

    The flags are ``terminated`` and ``truncated``.
    """

    observation: np.ndarray
    reward: np.ndarray
    cost: np.ndarray
    ended: np.ndarray


@dataclass(frozen=True)
class StepReader:
    """Read the tuples that n calls of ``env.step`` returned, and check every one of them.

    A 6-tuple ``(observation, reward, cost, terminated, truncated, info)`` has the cost as its third value. A
    5-tuple has it in ``info``. Rewards, and each cost in ``info``, are Python or NumPy numbers; an array or
    tensor of one element counts as a number, and a cost may be a vector. The costs are joined in the order of
    the names.

    An environment may reset itself at the end of an episode, and leave the last observation in
    ``info["final_obs"]`` (Gymnasium) or ``info["final_observation"]`` (Safety-Gymnasium). That observation is
    the one returned, and ``info["final_info"]`` takes the place of ``info``.

    Args:
        observation: reader of one observation.
        values: length of the tuples, 5 or 6.
        names: entries of ``info`` that hold the costs; None for the third value of a 6-tuple, and empty for
            no costs.
        cost_size: m.

    Example:
        >>> from gymnasium.spaces import Box
        >>> read = StepReader(ObservationReader(Box(-1, 1, (1,))), 5, ("cost_a", "cost_b"), 3)
        >>> read([([0.0], 1.0, False, False, {"cost_a": 1, "cost_b": [0.5, 0.25]})]).cost.tolist()
        [[1.0, 0.5, 0.25]]
        >>> read([([0.0], None, False, False, {"cost_a": 1, "cost_b": [0.5, 0.25]})])
        Traceback (most recent call last):
        safe_components.envs.gymnasium_step.UnusableValue: reward is None (NoneType), must be a real number
    """

    observation: ObservationReader
    values: int
    names: tuple[str, ...] | None
    cost_size: int

    def __call__(self, results: Sequence[Any]) -> Steps:
        """Return the numbers of ``results``.

        Raises:
            UnusableValue: for the first of ``results`` that does not hold what it must.
        """
        try:
            steps = self._together(results)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError):
            steps = None
        return self._one_by_one(results) if steps is None else steps

    def _together(self, results: Sequence[Any]) -> Steps | None:
        """Read all results in a few conversions; return None if one of them needs a closer look."""
        n = len(results)
        if any(len(result) != self.values for result in results):
            return None
        flags = [result[-3:-1] for result in results]
        ended = np.array(flags)
        if ended.dtype != bool or ended.shape != (n, 2):
            return None
        if any(True in pair for pair in flags):
            results = [last_of_episode(result) for result in results]
        observations = [result[0] for result in results]
        if not self.observation.is_vector:
            observations = [self.observation(x) for x in observations]
        observation = np.array(observations)
        reward = np.array([result[1] for result in results])
        if self.names is None:
            cost = np.array([result[2] for result in results])
        elif not self.names:
            cost = np.empty((n, 0))
        elif len(self.names) == 1:
            cost = np.array([result[-1][self.names[0]] for result in results])
        else:
            parts = ([np.reshape(result[-1][name], -1) for name in self.names] for result in results)
            cost = np.array([np.concatenate(part) for part in parts])
        if cost.ndim == 1:
            cost = cost[:, None]
        shapes = (observation.shape, reward.shape, cost.shape)
        if shapes != ((n, self.observation.size), (n,), (n, self.cost_size)):
            return None
        if not {observation.dtype.kind, reward.dtype.kind, cost.dtype.kind} <= NUMBERS:
            return None
        return Steps(observation, reward, cost, ended)

    def _one_by_one(self, results: Sequence[Any]) -> Steps:
        rows = []
        for row, result in enumerate(results):
            try:
                rows.append(self._one(result))
            except ValueError as error:
                raise UnusableValue(row, str(error)) from error
        return Steps(*(np.array(column) for column in zip(*rows, strict=True)))

    def _one(self, result: Any) -> tuple[np.ndarray, float, np.ndarray, tuple[bool, bool]]:
        check_tuple(result, self.values)
        ended = _flag(result[-3], "terminated"), _flag(result[-2], "truncated")
        if any(ended):
            result = last_of_episode(result)
        reward = as_numbers(result[1], "reward") if result[1] is not None else np.empty(0)
        if reward.size != 1:
            raise ValueError(f"reward is {described(result[1])}, must be a real number")
        cost = read_costs(result, self.names)
        if cost.size != self.cost_size:
            raise ValueError(
                f"cost is {cost.tolist()}, which has {cost.size} numbers; its first step had {self.cost_size}"
            )
        return self.observation(result[0]), float(reward.item()), cost, ended


def last_of_episode(result: Sequence[Any]) -> Sequence[Any]:
    """Return a step's values with the observation and info from before the environment reset itself."""
    terminated, truncated, info = result[-3:]
    key = next((key for key in _FINAL_OBSERVATION if info.get(key) is not None), None)
    if key is None or not (terminated or truncated):
        return result
    final = info.get(_FINAL_INFO)
    return info[key], *result[1:-1], final if isinstance(final, Mapping) else info


def check_tuple(result: Any, values: int | None = None) -> None:
    """Raise ValueError unless ``result`` is a step's tuple, of ``values`` entries if that is known."""
    must = "must return (observation, reward, terminated, truncated, info), or six values with the cost third"
    if not isinstance(result, tuple | list):
        raise ValueError(f"step() returned {described(result)}; it {must}")
    if len(result) not in (5, 6):
        old = "; four are the convention of the old gym package" if len(result) == 4 else ""
        raise ValueError(f"step() returned {len(result)} values; it {must}{old}")
    if values is not None and len(result) != values:
        raise ValueError(f"step() returned {len(result)} values; its first step returned {values}")
    if not isinstance(result[-1], Mapping):
        raise ValueError(f"info is {described(result[-1])}, must be a dictionary; step() {must}")


def read_reset(result: Any, observation: ObservationReader) -> np.ndarray:
    """Return the observation [o] of what ``env.reset`` returned.

    Raises:
        ValueError: unless it is a pair of an observation and a dictionary.
    """
    if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise ValueError(f"reset() returned {described(result)}; it must return (observation, info)")
    return observation(result[0])


def read_costs(result: Sequence[Any], names: Sequence[str] | None) -> np.ndarray:
    """Return the costs [m] of one step; if ``names`` is None, the third of its six values.

    Raises:
        ValueError: if a cost is missing or not made of numbers.
    """
    info = result[-1]
    missing = [name for name in names or () if name not in info]
    if missing:
        raise ValueError(f"cost {missing[0]!r} is missing from info, which holds {sorted(map(str, info))}")
    parts = {"cost": result[2]} if names is None else {name: info[name] for name in names}
    return np.concatenate([[], *(as_numbers(value, name).ravel() for name, value in parts.items())])


def first_costs(
    result: Sequence[Any], names: tuple[str, ...], env: str
) -> tuple[tuple[str, ...] | None, int]:
    """Find the costs in the first step of an environment.

    Args:
        result: the tuple that the step returned.
        names: entries of ``info`` that were asked for; empty for no costs.
        env: name of the environment, for error messages.

    Returns:
        The names of the entries of ``info``, None for the third of six values, and the number of costs.

    Raises:
        ValueError: if a name is not in the step's ``info``, or if its value is not made of numbers.
    """
    info = result[-1]
    if not names:
        return (), 0
    if len(result) == 6 and names == ("cost",):
        return None, _count(read_costs(result, None), env)
    missing = [name for name in names if name not in info]
    if missing:
        numbers = sorted(str(key) for key, value in info.items() if np.asarray(value).dtype.kind in NUMBERS)
        raise ValueError(
            f"{env} reports no cost {missing[0]!r}: its step's info must hold it (a number or a vector); "
            f"numeric entries found: {numbers or 'none'}. "
            "Name others with cost_keys=(...), or wrap the environment so that it writes info['cost']. "
            "To train without costs, name none: --cost-limit none"
        )
    return names, _count(read_costs(result, names), env)


def _count(costs: np.ndarray, env: str) -> int:
    if costs.size == 0:
        raise ValueError(f"{env} reports an empty cost; it must be a number or a vector")
    return int(costs.size)


def _flag(value: Any, name: str) -> bool:
    array = np.asarray(value)
    if array.size != 1 or array.dtype != bool:
        raise ValueError(f"{name} is {described(value)}, must be a bool")
    return bool(array.item())
