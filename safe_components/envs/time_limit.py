"""Truncation of episodes, for steps of five or six values."""

from __future__ import annotations

from typing import Any

import gymnasium


class TimeLimit(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Truncate episodes after a number of steps.

    Gymnasium's wrapper of this name takes steps of five values, and Safety-Gymnasium's takes steps of six.
    This one takes both.

    Args:
        env: the environment.
        max_episode_steps: steps after which an episode is truncated.

    Example:
        >>> env = TimeLimit(gymnasium.make("CartPole-v1", max_episode_steps=-1), 2)
        >>> _ = env.reset(seed=0)
        >>> [env.step(0)[-2] for _ in range(2)]
        [False, True]
    """

    def __init__(self, env: gymnasium.Env[Any, Any], max_episode_steps: int) -> None:
        super().__init__(env)
        self._max_episode_steps, self._elapsed_steps = max_episode_steps, 0

    def reset(self, **options: Any) -> Any:
        """Reset the environment and the count."""
        self._elapsed_steps = 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        """Take a step."""
        result: Any = self.env.step(action)
        self._elapsed_steps += 1
        if self._elapsed_steps >= self._max_episode_steps and isinstance(result, tuple) and len(result) > 4:
            return *result[:-2], True, result[-1]
        return result
