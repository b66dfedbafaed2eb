"""The base of transforms that tell a policy about its cost budget."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs import Transform

from safe_components import keys


class BudgetInput(Transform):  # type: ignore[misc]  # TorchRL has no types
    """Abstract base: an entry of m numbers that each step updates, appended to the observation.

    The entry travels with the steps, so the transform holds no state of the episodes. Subclasses say how the
    entry starts, changes and is shown.

    Args:
        entry: key of the entry ``[..., m]``.
        num_costs: ``m``.
    """

    def __init__(self, entry: str, num_costs: int) -> None:
        super().__init__(in_keys=[keys.OBSERVATION], out_keys=[keys.OBSERVATION, entry])
        self.entry, self.num_costs = entry, num_costs

    @abstractmethod
    def first(self, shape: torch.Size) -> Tensor:
        """Return the entry at the start of an episode, of this shape."""

    @abstractmethod
    def shown(self, entry: Tensor) -> Tensor:
        """Return what is appended to the observation, ``[..., m]``."""

    @abstractmethod
    def after(self, entry: Tensor, step: TensorDictBase) -> Tensor:
        """Return the entry after a step, which holds the environment's ``cost``."""

    @abstractmethod
    def reward(self, entry: Tensor, reward: Tensor) -> Tensor:
        """Return the reward ``[..., 1]`` of a step that ended with ``entry``."""

    def _reset(self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase) -> TensorDictBase:
        self._check_costs()
        entry = self.first(torch.Size((*tensordict_reset.batch_size, self.num_costs)))
        before = None if tensordict is None else tensordict.get(self.entry, None)
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        if before is not None and chosen is not None:
            entry = torch.where(chosen, entry, before)
        return self._append(tensordict_reset, entry)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        before = tensordict[self.entry]
        entry = self.after(before, next_tensordict)
        reward = self.reward(entry, next_tensordict["reward"])
        steps = tensordict.get("_step", None)  # set by rollouts in which some copies have ended
        if steps is not None:
            steps = steps.reshape(*steps.shape[: len(next_tensordict.batch_size)], 1)
            entry = torch.where(steps, entry, before)
            reward = torch.where(steps, reward, next_tensordict["reward"])
        next_tensordict["reward"] = reward
        return self._append(next_tensordict, entry)

    def _check_costs(self) -> None:
        costs = self.parent.full_reward_spec["cost"].shape[-1]
        if costs != self.num_costs:
            raise ValueError(
                f"{type(self).__name__} holds {self.num_costs} limits, but the environment has {costs} costs"
            )

    def _append(self, tensordict: TensorDictBase, entry: Tensor) -> TensorDictBase:
        observation = tensordict[keys.OBSERVATION]
        tensordict[keys.OBSERVATION] = torch.cat([observation, self.shown(entry).to(observation)], -1)
        return tensordict.set(self.entry, entry)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Lengthen the observation by m numbers, and add the entry."""
        old = observation_spec[keys.OBSERVATION]
        shape = (*old.shape[:-1], old.shape[-1] + self.num_costs)
        observation_spec[keys.OBSERVATION] = Unbounded(shape, dtype=old.dtype, device=old.device)
        return self._with_entry(observation_spec)

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        """Add the entry, which a step reads."""
        state = input_spec["full_state_spec"]
        if state is None:
            state = Composite(shape=input_spec.shape, device=input_spec.device)
        input_spec["full_state_spec"] = self._with_entry(state)
        return input_spec

    def _with_entry(self, spec: Composite) -> Composite:
        entry: TensorSpec = Unbounded((*spec.shape, self.num_costs), dtype=torch.float32, device=spec.device)
        spec[self.entry] = entry
        return spec
