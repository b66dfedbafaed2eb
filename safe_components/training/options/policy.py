"""Options of the policy: a Gaussian, a squashed Gaussian, or one of your own by its import path."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any, ClassVar, TypeAlias

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor

from safe_components import keys
from safe_components.ops import has_distribution, import_part
from safe_components.policies import Covariance, gaussian_policy
from safe_components.training.annealing import annealed_group
from safe_components.training.options.ranges import Positive, PositiveShare, Sizes, StepSize

__all__ = ["GaussianConfig", "OwnConfig", "Policy", "PolicyConfig", "TanhConfig"]


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The network and the optimizer of the policy."""

    squashes: ClassVar[bool] = False
    hidden_sizes: Sizes = (128, 128)
    """widths of the hidden layers"""
    lr: StepSize = 1e-3
    """step size of Adam at the start"""
    lr_end: PositiveShare = 0.05
    """share of lr that is left at the end of the run, to which it falls linearly; 1 keeps lr"""

    def group(self, parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
        """Return the group of the policy's parameters in its optimizer, whose step size `anneal` lowers."""
        return annealed_group(parameters, self.lr, self.lr_end)


@dataclasses.dataclass(frozen=True)
class GaussianConfig(PolicyConfig):
    """The Gaussian policy and its optimizer."""

    covariance: Covariance = "diagonal"
    """covariance of the policy: full or diagonal"""
    min_std: Positive = 0.1
    """lower bound of the standard deviation, as a share of half the action range"""

    def make(self, observation_dim: int, action_low: Tensor, action_high: Tensor) -> ProbabilisticActor:
        """Make the policy for actions inside these bounds."""
        return gaussian_policy(
            observation_dim,
            action_low,
            action_high,
            hidden_sizes=self.hidden_sizes,
            covariance=self.covariance,
            min_std=self.min_std,
        )


@dataclasses.dataclass(frozen=True)
class TanhConfig(PolicyConfig):
    """The Gaussian policy that tanh squashes into the action bounds, and its optimizer."""

    squashes: ClassVar[bool] = True
    covariance: Covariance = "diagonal"
    """covariance before the squashing: full or diagonal"""
    init_std: Positive = 1.0
    """initial standard deviation before the squashing; 1 spreads the actions almost evenly"""
    min_std: Positive = 0.1
    """lower bound of the standard deviation before the squashing"""

    def make(self, observation_dim: int, action_low: Tensor, action_high: Tensor) -> ProbabilisticActor:
        """Make the policy for actions inside these bounds."""
        return gaussian_policy(
            observation_dim,
            action_low,
            action_high,
            hidden_sizes=self.hidden_sizes,
            covariance=self.covariance,
            init_std=self.init_std,
            min_std=self.min_std,
            squash=True,
        )


@dataclasses.dataclass(frozen=True)
class OwnConfig(PolicyConfig):
    """A policy of your own, and its optimizer."""

    function: str = ""
    """package.module:name of the function that makes the policy; --policy package.module:name sets it"""

    def validate(self, config: Any) -> None:
        """Raise ValueError unless the function exists and takes what :meth:`make` gives it."""
        self._function()

    def _function(self) -> Any:
        function = import_part(self.function, "policy")
        try:
            inspect.signature(function).bind(1, 0, 1, hidden_sizes=())
        except TypeError as error:
            raise ValueError(
                f"policy is {self.function!r}, which must be a function of observation_dim, action_low, "
                f"action_high and hidden_sizes: {error}"
            ) from error
        return function

    def make(self, observation_dim: int, action_low: Tensor, action_high: Tensor) -> Any:
        """Call the function, and try the policy on two observations.

        Raises:
            ValueError: if it is no TensorDict module with a distribution, reads or writes other entries, or
                its actions have the wrong shape or are not finite.
        """
        policy = self._function()(observation_dim, action_low, action_high, hidden_sizes=self.hidden_sizes)
        who = f"policy is {self.function!r}, which returns a {type(policy).__name__}"
        if not has_distribution(policy):
            raise ValueError(
                f"{who} without a distribution of actions (get_dist): return an actor such as TorchRL's "
                "ProbabilisticActor"
            )
        if list(policy.in_keys) != [keys.OBSERVATION] or keys.ACTION not in policy.out_keys:
            raise ValueError(
                f"{who} that reads {policy.in_keys} and writes {policy.out_keys}: it must read "
                f"{keys.OBSERVATION!r} alone and write {keys.ACTION!r}"
            )
        observation = torch.zeros(2, observation_dim)
        action = policy(TensorDict({keys.OBSERVATION: observation}, [2]))[keys.ACTION]
        if action.shape != (2, len(action_low)) or not bool(action.isfinite().all()):
            raise ValueError(
                f"{who}: for observations [2, {observation_dim}] of zeros its actions must be finite and of "
                f"shape [2, {len(action_low)}], got shape {list(action.shape)}: {action.tolist()}"
            )
        return policy


Policy: TypeAlias = GaussianConfig | TanhConfig | OwnConfig
