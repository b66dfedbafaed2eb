"""The base classes that Safety-Gymnasium's normalizing wrappers expect, as Gymnasium 0.28 had them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers.utils import RunningMeanStd


class NormalizeObservation(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Scale observations by the mean and standard deviation of all observations so far.

    Args:
        env: the environment, whose observations are arrays.
        epsilon: added to the variance.
    """

    is_vector_env = False

    def __init__(self, env: gymnasium.Env[Any, Any], epsilon: float = 1e-8) -> None:
        RecordConstructorArgs.__init__(self, epsilon=epsilon)
        gymnasium.Wrapper.__init__(self, env)
        shape = env.observation_space.shape
        assert shape is not None
        self.obs_rms: Any = RunningMeanStd(shape=shape)  # type: ignore[no-untyped-call]
        self.epsilon = epsilon
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float64)

    def reset(self, **options: Any) -> Any:
        """Reset the environment and scale its first observation."""
        observation, info = self.env.reset(**options)
        return self.normalize(observation), info

    def normalize(self, observation: Any) -> np.ndarray:
        """Scale one observation or several, after counting them."""
        array = np.asarray(observation, np.float64)
        rows = array.reshape(-1, *self.obs_rms.mean.shape)
        self.obs_rms.update(rows)
        scaled: np.ndarray = (rows - self.obs_rms.mean) / np.sqrt(self.obs_rms.var + self.epsilon)
        return scaled.reshape(array.shape)


class NormalizeReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Scale rewards by the standard deviation of the discounted sum of rewards.

    Args:
        env: the environment.
        gamma: discount of the sum.
        epsilon: added to the variance.
    """

    is_vector_env = False

    def __init__(self, env: gymnasium.Env[Any, Any], gamma: float = 0.99, epsilon: float = 1e-8) -> None:
        RecordConstructorArgs.__init__(self, gamma=gamma, epsilon=epsilon)
        gymnasium.Wrapper.__init__(self, env)
        self.return_rms: Any = RunningMeanStd(shape=())  # type: ignore[no-untyped-call]
        self.returns = np.zeros(1)
        self.gamma, self.epsilon = gamma, epsilon

    def normalize(self, rewards: np.ndarray) -> np.ndarray:
        """Scale rewards, after counting the sum, which the subclass has updated."""
        self.return_rms.update(self.returns)
        scaled: np.ndarray = rewards / np.sqrt(self.return_rms.var + self.epsilon)
        return scaled
