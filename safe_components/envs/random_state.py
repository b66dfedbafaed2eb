"""Reproducible episodes of environments that draw from the global random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np


class OwnRandomState(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Give an environment its own random state in place of the global one.

    Some environments ignore ``reset(seed=...)`` and draw from ``numpy.random`` and ``random``. Their episodes
    would depend on every other draw in the process, and would change those draws. This wrapper swaps both
    global states for the environment's own while the environment runs, and restores them afterwards.

    Args:
        make: returns the environment.
        in_step: whether the environment draws in its steps as well. Swapping costs about 40 µs per step.
        make_again: whether a reset with a seed makes the environment again, for a simulator that carries
            traces of the last episode through a reset.

    Example:
        >>> class Coin(gymnasium.Env):
        ...     def reset(self, *, seed=None, options=None):
        ...         return np.random.randint(1000), {}
        >>> a, b = OwnRandomState(Coin), OwnRandomState(Coin)
        >>> (a.reset(seed=3)[0], a.reset()[0]) == (b.reset(seed=3)[0], b.reset()[0])
        True
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        *,
        in_step: bool = False,
        make_again: bool = True,
    ) -> None:
        self._make, self._in_step, self._make_again = make, in_step, make_again
        self._states = np.random.RandomState().get_state(), random.Random().getstate()
        with self._swapped():
            env = make()
        super().__init__(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; a seed starts its random stream anew."""
        if seed is not None:
            self._states = np.random.RandomState(seed).get_state(), random.Random(seed).getstate()
        with self._swapped():
            if seed is not None and self._make_again:
                self.env.close()
                self.env = self._make()
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Take a step."""
        with self._swapped() if self._in_step else contextlib.nullcontext():
            return self.env.step(action)

    @contextlib.contextmanager
    def _swapped(self) -> Iterator[None]:
        outside = np.random.get_state(), random.getstate()
        np.random.set_state(self._states[0])
        random.setstate(self._states[1])
        try:
            yield
        finally:
            self._states = np.random.get_state(), random.getstate()
            np.random.set_state(outside[0])
            random.setstate(outside[1])


def global_states() -> tuple[Any, ...]:
    """Return the states of both global generators; they differ after a draw.

    Example:
        >>> before = global_states()
        >>> before == global_states()
        True
        >>> _ = random.random()
        >>> before == global_states()
        False
    """
    name, keys, *rest = np.random.get_state()
    return name, np.asarray(keys).tobytes(), *rest, random.getstate()
