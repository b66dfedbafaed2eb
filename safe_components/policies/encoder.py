"""An encoder: what a network reads of an environment with several observations, as one vector of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Composite

from safe_components import keys


class Encoder(TensorDictModuleBase):  # type: ignore[misc]  # TensorDict has no types
    """Map the entries of an environment to the features ``observation [..., f]`` that the parts read.

    The module of the user reads entries of shape ``[B, ...]``, with a single batch dimension, and writes
    ``observation [B, f]``. This class checks it once and brings other batch sizes to that form.

    Args:
        module: TensorDict module, such as ``TensorDictModule(network, ["vision"], ["observation"])``.
        spec: entries of one environment, without batch size.
        name: name of the module, for error messages.

    Attributes:
        size: number ``f`` of features.
        shapes: shape of each entry that is read, without batch size.

    Raises:
        ValueError: if the module reads an entry that the environment does not write, or writes anything else
            than finite features of shape ``[B, f]`` in float32.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.data import Bounded
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
        >>> module = TensorDictModule(lambda x: network(x / 255), ["vision"], ["observation"])
        >>> encoder = Encoder(module, Composite(vision=Bounded(0, 255, (2, 2, 3), dtype=torch.uint8)))
        >>> steps = TensorDict(vision=torch.zeros(5, 7, 2, 2, 3, dtype=torch.uint8), batch_size=[5, 7])
        >>> encoder(steps)["observation"].shape
        torch.Size([5, 7, 4])
    """

    def __init__(self, module: TensorDictModuleBase, spec: Composite, name: str = "the encoder") -> None:
        super().__init__()
        if not isinstance(module, TensorDictModuleBase):
            raise ValueError(f"{name} is a {type(module).__name__}, must be a TensorDict module")
        written = list(spec.keys(True, True))
        if unknown := [key for key in module.in_keys if key not in written]:
            raise ValueError(
                f"{name} reads {unknown[0]!r}, but the environment writes {', '.join(map(str, written))}"
            )
        if keys.OBSERVATION not in module.out_keys:
            raise ValueError(f"{name} writes {module.out_keys}, must write {keys.OBSERVATION!r}")
        self.module = module
        self.in_keys, self.out_keys = list(module.in_keys), [keys.OBSERVATION]
        self.shapes = {key: tuple(spec[key].shape) for key in self.in_keys}
        self.size = self._tried(spec, name)

    def _tried(self, spec: Composite, name: str) -> int:
        """Run the module on two observations of zeros, and return the number of features."""
        weight = next(self.parameters(), None)
        zeros = spec.expand(2).zero().select(*self.in_keys)
        said = ", ".join(f"{key} {list(zeros[key].shape)} {zeros[key].dtype}" for key in self.in_keys)
        try:
            with torch.no_grad():
                written = self.module(zeros.to("cpu" if weight is None else weight.device))
            features = written[keys.OBSERVATION]
        except Exception as error:  # a module of the user may raise anything
            raise ValueError(f"{name} raises {type(error).__name__} for {said}: {error}") from error
        if features.ndim != 2 or features.shape[0] != 2 or features.dtype != torch.float32:
            raise ValueError(
                f"{name} writes {keys.OBSERVATION!r} of shape {list(features.shape)} in {features.dtype} for "
                f"{said}: it must be one vector of features per state, [2, f] in torch.float32"
            )
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name} writes features that are not finite for {said} of zeros")
        return int(features.shape[-1])

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``observation [..., f]`` into a TensorDict of any batch size."""
        lead = tensordict.batch_size
        inputs = tensordict.select(*self.in_keys)
        features = self.module(inputs.reshape(-1) if lead else inputs.unsqueeze(0))[keys.OBSERVATION]
        return tensordict.set(keys.OBSERVATION, features.reshape(*lead, self.size))


def make_encoder(function: Callable[[Composite], Any], spec: Composite, name: str = "the encoder") -> Encoder:
    """Call a function that makes an encoder for the entries of an environment, and check what it makes.

    Args:
        function: function of ``spec`` that returns a TensorDict module; see `Encoder`.
        spec: entries of one environment, without batch size.
        name: name of the function, for error messages.

    Raises:
        ValueError: under the conditions of `Encoder`.
    """
    return Encoder(function(spec), spec, name)


def encoded_policy(encoder: nn.Module | None, policy: TensorDictModuleBase) -> TensorDictModuleBase:
    """Return a policy that reads the entries of the environment, by an encoder in front of it.

    The parameters are those of both modules, not copies. A policy that shares the encoder of the critics acts
    in this form, and learns by itself from features that are constants for it. A policy with an encoder of
    its own learns in this form, through the encoder.

    Args:
        encoder: the encoder; None returns the policy as it is.
        policy: policy that reads ``observation``.
    """
    if encoder is None:
        return policy
    if isinstance(policy, ProbabilisticTensorDictSequential):
        return ProbabilisticTensorDictSequential(encoder, *policy.module)
    return TensorDictSequential(encoder, policy)
