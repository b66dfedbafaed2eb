"""Options of the M-step: its trust region, and how the reference policy follows the policy."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias

from torch import nn
from torchrl.objectives.common import LossModule

from safe_components.critics import Copy, Polyak
from safe_components.mstep import (
    HardTrustRegion,
    Likelihood,
    MStepLoss,
    NoTrustRegion,
    Retraction,
    SoftTrustRegion,
    WeightedLikelihoodLoss,
)
from safe_components.training.options.ranges import KeptShare, NotNegative, Positive, Repeats, StepSize

__all__ = [
    "CopyConfig",
    "HardConfig",
    "MStepConfig",
    "NoneConfig",
    "PolyakConfig",
    "Reference",
    "RetractConfig",
    "SoftConfig",
    "TrustRegion",
    "TrustRegionConfig",
]


@dataclasses.dataclass(frozen=True)
class MStepConfig:
    """The M-step, whose gradient steps fit the policy to the weighted actions."""

    iterations: Repeats = 2
    """gradient steps of the policy per E-step"""
    likelihood: Likelihood = "joint"
    """fit mean and covariance of a Gaussian each beside the old value of the other (decoupled), or both at
    once (joint)"""


class TrustRegionConfig(ABC):
    """A limit on how far the M-step may move the policy."""

    @abstractmethod
    def make(self) -> nn.Module:
        """Make the trust region that the loss takes."""

    def make_retraction(self, loss: MStepLoss | WeightedLikelihoodLoss) -> Retraction | None:
        """Make the retraction that shortens steps; return None if the loss alone keeps the trust region."""
        return None


@dataclasses.dataclass(frozen=True)
class HardConfig(TrustRegionConfig):
    """A trust region that learned multipliers keep."""

    kl_mean: Positive = 0.03
    """bound on the KL divergence of the mean, in nats; of the whole policy if it is no Gaussian"""
    kl_cov: Positive = 0.01
    """bound on the KL divergence of the covariance, in nats"""
    lr: StepSize = 0.1
    """step size of Adam for the multipliers"""

    def make(self) -> HardTrustRegion:
        """Make the trust region."""
        return HardTrustRegion(self.kl_mean, self.kl_cov)


@dataclasses.dataclass(frozen=True)
class RetractConfig(TrustRegionConfig):
    """A trust region that is kept by shortening each step of the policy."""

    kl_mean: Positive = 0.05
    """bound on the KL divergence of the mean, in nats; of the whole policy if it is no Gaussian"""
    kl_cov: Positive = 0.01
    """bound on the KL divergence of the covariance, in nats"""

    def make(self) -> NoTrustRegion:
        """Make an empty trust region, because the retraction keeps the bounds."""
        return NoTrustRegion()

    def make_retraction(self, loss: MStepLoss | WeightedLikelihoodLoss) -> Retraction:
        """Make the retraction that shortens steps."""
        return Retraction(loss, self.kl_mean, self.kl_cov)


@dataclasses.dataclass(frozen=True)
class SoftConfig(TrustRegionConfig):
    """Fixed penalties on the KL divergences, in place of bounds."""

    coef_mean: NotNegative = 1.0
    """penalty on the KL divergence of the mean, per nat; of the whole policy if it is no Gaussian"""
    coef_cov: NotNegative = 10.0
    """penalty on the KL divergence of the covariance, per nat"""

    def make(self) -> SoftTrustRegion:
        """Make the trust region."""
        return SoftTrustRegion(self.coef_mean, self.coef_cov)


@dataclasses.dataclass(frozen=True)
class NoneConfig(TrustRegionConfig):
    """No trust region."""

    def make(self) -> NoTrustRegion:
        """Make an empty trust region."""
        return NoTrustRegion()


@dataclasses.dataclass(frozen=True)
class PolyakConfig:
    """A reference policy that is a Polyak average of the policy, moved at each update."""

    eps: KeptShare = 0.995
    """share of its own parameters that the reference policy keeps at each update"""
    each_update: ClassVar[bool] = True

    def make(self, loss: LossModule) -> Polyak:
        """Make the Polyak average that moves the reference policy of ``loss``."""
        return Polyak(loss, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class CopyConfig:
    """A reference policy that is copied from the policy after each batch of frames."""

    each_update: ClassVar[bool] = False

    def make(self, loss: LossModule) -> Copy:
        """Make the copy that moves the reference policy of ``loss``."""
        return Copy(loss)


TrustRegion: TypeAlias = HardConfig | RetractConfig | SoftConfig | NoneConfig
Reference: TypeAlias = PolyakConfig | CopyConfig
