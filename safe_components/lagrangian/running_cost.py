"""The cost of an episode, estimated from every step, without waiting for episodes to end."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from safe_components.keys import COST, DONE


class RunningEpisodeCost(nn.Module):
    """Exponential averages of the cost per step and of the length of an episode; their product is ``J_c``.

        rate   <- rate   + (1 - exp(-n / memory)) (mean cost of n new steps - rate)
        length <- length + (1 - exp(-l / memory)) (mean length of the ended episodes - length)
        J_c = rate · length                                          l: steps in the ended episodes

    Every batch of steps moves the estimate, even if no episode ends in it. Copies that run in step, whose
    episodes all end together, therefore do not make a multiplier wait for the end. The rate starts with the
    first batch, and the length starts with the time limit.

    Args:
        num_costs: ``m``, number of cost signals.
        num_envs: ``N``, number of copies of the environment.
        episode_length: length of an episode without an early end, in steps.
        memory: number of steps after which an old batch weighs ``1/e`` as much.

    Attributes:
        rate: mean cost of a step ``[m]`` (a buffer, float64, as are all statistics here).
        length: mean length of an episode ``[]``, in steps.
        age: steps of the current episode of each copy ``[N]``.

    Raises:
        ValueError: if a setting is not positive; in ``update``, if the steps have another shape.

    Example:
        >>> from tensordict import TensorDict
        >>> running = RunningEpisodeCost(num_costs=1, num_envs=2, episode_length=100, memory=1000)
        >>> cost, done = torch.full((2, 50, 1), 0.5), torch.zeros(2, 50, 1, dtype=torch.bool)
        >>> running.update(TensorDict(next=TensorDict(cost=cost, done=done), batch_size=[2, 50]))
        tensor([50.], dtype=torch.float64)
    """

    rate: Tensor
    length: Tensor
    age: Tensor

    def __init__(self, num_costs: int, num_envs: int, episode_length: int, memory: float) -> None:
        super().__init__()
        sizes = {"num_costs": num_costs, "num_envs": num_envs, "episode_length": episode_length}
        for name, value in (sizes | {"memory": memory}).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        self.memory = memory
        self.register_buffer("rate", torch.full((num_costs,), torch.nan, dtype=torch.float64))
        self.register_buffer("length", torch.tensor(float(episode_length), dtype=torch.float64))
        self.register_buffer("age", torch.zeros(num_envs, dtype=torch.long))

    @torch.no_grad()
    def update(self, steps: TensorDictBase) -> Tensor:
        """Add consecutive steps ``[N, T]``; return ``J_c [m]``, cost per episode."""
        cost, done = steps[COST].to(self.rate), steps[DONE].to(self.age.device).squeeze(-1)
        if cost.shape != (len(self.age), done.shape[-1], len(self.rate)):
            raise ValueError(
                f"cost must be [N, T, m] = [{len(self.age)}, T, {len(self.rate)}], got {tuple(cost.shape)}"
            )
        new = cost.flatten(0, 1).mean(0)
        share = -math.expm1(-done.numel() / self.memory)
        self.rate.copy_(torch.where(self.rate.isnan(), new, self.rate.lerp(new, share)))
        # The index of the last end before each step; that of the episode in progress lies before this batch.
        index = torch.arange(done.shape[1], device=done.device)
        ends = torch.cat([-1 - self.age.unsqueeze(-1), torch.where(done, index, -1 - self.age.max() - 1)], 1)
        last = ends.cummax(1).values
        lengths = (index - last[:, :-1])[done].to(self.length)
        if len(lengths):
            self.length.lerp_(lengths.mean(), -math.expm1(-float(lengths.sum()) / self.memory))
        self.age.copy_(index[-1] - last[:, -1])
        return self.value

    @property
    def value(self) -> Tensor:
        """``J_c [m]``; NaN before the first steps."""
        return self.rate * self.length
