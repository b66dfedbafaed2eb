"""The cost of an episode, estimated from every step, without waiting for episodes to end."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from safe_components.keys import COST, DONE, STEP_COUNT


class RunningEpisodeCost(nn.Module):
    """Exponential averages of the cost per step and of the length of an episode; their product is ``J_c``.

        rate   <- rate   + (1 - exp(-n / memory)) (mean cost of n new steps - rate)
        length <- length + (1 - exp(-l / memory)) (mean length of the ended episodes - length)
        J_c = rate · length                                          l: steps in the ended episodes

    Every batch of steps moves the estimate, even if no episode ends in it. Copies that run in step, whose
    episodes all end together, therefore do not make a multiplier wait for the end. The rate starts with the
    first batch, and the length starts with the time limit.

    Args:
        num_costs: ``m``, number of cost signals, at least 0.
        episode_length: length of an episode without an early end, in steps.
        memory: number of steps after which an old batch weighs ``1/e`` as much.

    Attributes:
        rate: mean cost of a step ``[m]`` (a buffer, float64, as are all statistics here).
        length: mean length of an episode ``[]``, in steps.

    Raises:
        ValueError: if a setting is out of range; in ``update``, if the costs have another shape.
        KeyError: in ``update``, if the environment has no ``StepCounter``.

    Example:
        >>> from torchrl.envs import StepCounter, TransformedEnv
        >>> from safe_components.envs import make_env
        >>> env = TransformedEnv(make_env("PointCircle", num_envs=2, max_episode_steps=100), StepCounter())
        >>> running = RunningEpisodeCost(num_costs=1, episode_length=100, memory=1000)
        >>> J_c = running.update(env.rollout(50))  # [1]
        >>> running.length
        tensor(100., dtype=torch.float64)
    """

    rate: Tensor
    length: Tensor

    def __init__(self, num_costs: int, episode_length: int, memory: float) -> None:
        super().__init__()
        if num_costs < 0:
            raise ValueError(f"num_costs={num_costs} must be at least 0")
        sizes = {"episode_length": episode_length, "memory": memory}
        for name, value in sizes.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        self.memory = memory
        self.register_buffer("rate", torch.full((num_costs,), torch.nan, dtype=torch.float64))
        self.register_buffer("length", torch.tensor(float(episode_length), dtype=torch.float64))

    @torch.no_grad()
    def update(self, steps: TensorDictBase) -> Tensor:
        """Add new steps, of any batch size; return ``J_c [m]``, cost per episode."""
        cost, done = steps[COST].to(self.rate), steps[DONE].squeeze(-1)
        if cost.shape != (*done.shape, len(self.rate)):
            raise ValueError(
                f"cost must have the shape {(*done.shape, len(self.rate))}, got {tuple(cost.shape)}"
            )
        count = steps.get(STEP_COUNT, None)
        if count is None:
            raise KeyError(
                f"the steps hold no {STEP_COUNT}, which tells the length of episodes: append TorchRL's "
                "StepCounter() to the environment"
            )
        new = cost.flatten(0, -2).mean(0)
        share = -math.expm1(-done.numel() / self.memory)
        self.rate.copy_(torch.where(self.rate.isnan(), new, self.rate.lerp(new, share)))
        lengths = count.squeeze(-1)[done].to(self.length)
        if len(lengths):
            self.length.lerp_(lengths.mean(), -math.expm1(-float(lengths.sum()) / self.memory))
        return self.value

    @property
    def value(self) -> Tensor:
        """``J_c [m]``; NaN before the first steps."""
        return self.rate * self.length
