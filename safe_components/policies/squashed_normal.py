"""A multivariate normal distribution squashed into the action bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Size, Tensor
from torch.distributions import AffineTransform, TransformedDistribution
from torchrl.modules.distributions.continuous import SafeTanhTransform

from safe_components.ops import Squash
from safe_components.policies.distribution import CholeskyNormal


class SquashedNormal(TransformedDistribution):
    """Distribution of ``a = c + h tanh(x)``, ``x ~ N(loc, L Lᵀ)``.

    ``tanh`` does not depend on the parameters. So the divergence of two of these distributions with the same
    bounds is that of their Gaussians, and ``log p(a)`` is ``log N(x)`` less a term that depends on ``x``
    alone. The ``base_dist``, a `CholeskyNormal`, therefore serves an M-step as it is.

    Actions never leave the bounds. ``log_prob(a)`` inverts the ``tanh`` and loses digits near a bound. Score
    a draw where it is drawn, by TorchRL's ``sample_and_log_prob``.

    Args:
        loc: ``[..., a]``, mean of ``x``.
        scale_tril: ``[..., a, a]``, ``L``, lower Cholesky factor of the covariance of ``x``.
        squash: the map, with the center ``c [a]`` and the half ``h [a]`` of each action's range.

    Source: Haarnoja et al. 2018 (arXiv 1801.01290), appendix C.

    Example:
        >>> import torch
        >>> from safe_components.ops import Squash
        >>> squash = Squash(torch.zeros(2), torch.ones(2))
        >>> d = SquashedNormal(torch.tensor([0.0, 3.0]), 0.1 * torch.eye(2), squash)
        >>> d.deterministic_sample
        tensor([0.0000, 0.9951])
        >>> action, log_prob = d.sample_and_log_prob((5,))
        >>> action.shape, log_prob.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # PyTorch's own form
    #: What `safe_components.ops.squash_of` looks for.
    squashes = True
    base_dist: CholeskyNormal

    def __init__(self, loc: Tensor, scale_tril: Tensor, squash: Squash) -> None:
        self.squash = squash
        transforms = [SafeTanhTransform(), AffineTransform(squash.center, squash.half_range)]
        super().__init__(CholeskyNormal(loc, scale_tril), transforms, validate_args=False)

    @property
    def deterministic_sample(self) -> Tensor:
        """The action of the mean, ``c + h tanh(loc) [..., a]``, which is also the median of each action."""
        action: Tensor = self.squash(self.base_dist.loc)
        return action

    @property
    def median(self) -> Tensor:
        """The median of each action ``[..., a]``: a monotone map keeps it."""
        return self.deterministic_sample

    def sample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draw actions ``[*sample_shape, ..., a]`` without a gradient, and return their log-densities."""
        return self._scored(self.base_dist.sample, sample_shape)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draw differentiable actions, and return their log-densities in nats ``[*sample_shape, ...]``."""
        return self._scored(self.base_dist.rsample, sample_shape)

    def _scored(self, draw: Callable[[Size], Tensor], sample_shape: Any) -> tuple[Tensor, Tensor]:
        value = draw(Size(sample_shape))
        return self.squash(value), self.base_dist.log_prob(value) - self.squash.log_slope(value)
