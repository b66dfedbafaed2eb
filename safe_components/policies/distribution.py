"""A multivariate normal distribution given by its Cholesky factor, fast to sample and to score."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import MultivariateNormal

from safe_components.ops import standard_normal


class CholeskyNormal(MultivariateNormal):
    """Distribution of ``x = loc + scale_tril @ noise``, ``noise ~ N(0, I)``.

    This is ``torch.distributions.MultivariateNormal`` (same samples from the same seed), optimized for the
    inner loop. Arguments are not validated, one batched product draws many samples per state, and one
    triangular solve computes log-probabilities. ``deterministic_sample``, ``mean``, ``mode`` and ``median``
    are ``loc``, so every TorchRL exploration type works.

    Args:
        loc: ``[..., a]``, mean, in the unit of the action.
        scale_tril: ``[..., a, a]``, lower Cholesky factor of the covariance, positive diagonal.
        validate_args: whether torch checks the arguments, which synchronizes with the device.

    Example:
        >>> import torch
        >>> d = CholeskyNormal(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.5, 2.0]]))
        >>> d.deterministic_sample
        tensor([0., 0.])
        >>> d.rsample((5,)).shape
        torch.Size([5, 2])
        >>> d.log_prob(torch.zeros(2))
        tensor(-2.5310)
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: bool = False) -> None:
        super().__init__(loc, scale_tril=scale_tril, validate_args=validate_args)

    @property
    def deterministic_sample(self) -> Tensor:
        """The mean ``loc [..., a]``."""
        return self.loc

    @property
    def median(self) -> Tensor:
        """The mean ``loc [..., a]``, about which the density is symmetric."""
        return self.loc

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``[*sample_shape, ..., a]``, differentiable with respect to ``loc`` and ``scale_tril``."""
        noise = standard_normal(self._extended_shape(Size(sample_shape)), self.loc)
        return self.loc + self._along_states(torch.matmul, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, ``[*sample_shape, ...]``, of ``value [*sample_shape, ..., a]``."""
        if self._validate_args:
            self._validate_sample(value)
        white = self._along_states(_solve_lower, value - self.loc)
        log_diag = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (white.square().sum(-1) + self.loc.shape[-1] * math.log(2 * math.pi)) - log_diag

    def _along_states(self, op: Callable[[Tensor, Tensor], Tensor], vectors: Tensor) -> Tensor:
        """Apply ``op(scale_tril, .)`` to ``[*sample_shape, ..., a]`` with the samples as matrix columns."""
        if vectors.ndim == self.loc.ndim:
            return op(self.scale_tril, vectors.unsqueeze(-1)).squeeze(-1)
        columns = vectors.flatten(0, vectors.ndim - self.loc.ndim - 1).movedim(0, -1)
        return op(self.scale_tril, columns).movedim(-1, 0).reshape(vectors.shape)


def _solve_lower(scale_tril: Tensor, columns: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(scale_tril, columns, upper=False)
    return solved
