"""The learner of a recipe: its parts, one update of them, and a ``state_dict`` that is the checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn

__all__ = ["Learner"]


class Learner(nn.Module):
    """The parts of an algorithm, with a ``state_dict`` that includes the state of every optimizer.

    The optimizers are those among the attributes of this module and of its submodules.

    Example:
        >>> class Fit(Learner):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(2, 1)
        ...         self.optim = torch.optim.Adam(self.net.parameters())
        >>> sorted(Fit().state_dict())
        ['_extra_state', 'net.bias', 'net.weight']
    """

    def update(self, *batches: TensorDictBase) -> dict[str, torch.Tensor]:
        """Make one update from batches of constant size, and return its metrics.

        A metric is a scalar or a vector with one element per cost.
        """
        raise NotImplementedError

    def follow_policy(self) -> None:
        """Set the copies of the policy (a reference or target policy) to the policy's present parameters."""
        for module in self.modules():
            target = getattr(module, "target_policy_params", None)
            if target is not None:
                target.data.update_(module.policy_params.data)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by name, such as ``critics.optim``."""
        return {
            f"{prefix}.{name}" if prefix else name: value
            for prefix, module in self.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, torch.optim.Optimizer)
        }

    def get_extra_state(self) -> dict[str, Any]:
        """Return the states of the optimizers by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the states of the optimizers.

        Raises:
            ValueError: if the names of the optimizers differ.
        """
        optimizers = self.optimizers
        if state.keys() != optimizers.keys():
            raise ValueError(
                f"the checkpoint holds optimizers {sorted(state)}, but the learner has {sorted(optimizers)}"
            )
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state[name])
