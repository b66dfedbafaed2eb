"""Call modules with other parameters than their own, and the network of a TorchRL actor on tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from tensordict.utils import NestedKey
from torch import nn
from torch.distributions import MultivariateNormal
from torchrl.modules import Actor, ProbabilisticActor

from safe_components.keys import LOC, SCALE_TRIL


def swapped(module: nn.Module, params: TensorDictBase | None) -> AbstractContextManager[Any]:
    """Return a context in which ``module`` computes with ``params``; None keeps the module's own.

    The tensors are swapped in as they are. Preserving the module's state would turn target buffers into
    parameters that require gradients.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> linear = torch.nn.Linear(1, 1, bias=False)
        >>> with swapped(linear, TensorDict(weight=torch.tensor([[2.0]]))):
        ...     linear(torch.ones(1))
        tensor([2.])
    """
    return nullcontext() if params is None else params.to_module(module, preserve_module_state=False)


def has_distribution(policy: Any) -> bool:
    """Whether a policy draws its actions from a distribution with ``log_prob``.

    TorchRL's deterministic ``Actor`` has a ``get_dist``, too, but its distribution is a single point.

    Example:
        >>> import torch
        >>> from torchrl.modules import Actor
        >>> has_distribution(Actor(torch.nn.Linear(2, 1)))
        False
    """
    return hasattr(policy, "get_dist") and not isinstance(policy, Actor)


def is_gaussian(policy: Any) -> bool:
    """Whether a policy is a Gaussian, squashed or not, that writes its ``loc`` and ``scale_tril``.

    A policy that writes both and draws from another distribution is no Gaussian, unless that distribution
    says how it squashes the values (see `squash_of`). A module without a distribution of its own is taken at
    the word of its ``out_keys``, and a plain function, which has none, as a Gaussian.

    Example:
        >>> import torch
        >>> from torchrl.modules import Actor
        >>> is_gaussian(Actor(torch.nn.Linear(2, 1)))
        False
    """
    if not {LOC, SCALE_TRIL} <= set(getattr(policy, "out_keys", (LOC, SCALE_TRIL))):
        return False
    modules = policy.modules() if isinstance(policy, nn.Module) else ()
    drawn = [m.distribution_class for m in modules if isinstance(m, ProbabilisticTensorDictModule)]
    return all(_is_normal(kind) or getattr(kind, "squashes", False) for kind in drawn)


def _is_normal(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, MultivariateNormal)


def single_network(policy: Any) -> TensorDictModule | None:
    """Return the network of an actor that consists of ``[TensorDictModule(network), distribution]``.

    The result is None for any other actor, and for a network with a single output.

    Example:
        >>> import torch
        >>> from torchrl.modules import Actor
        >>> single_network(Actor(torch.nn.Linear(2, 1))) is None
        True
    """
    if type(policy) not in (ProbabilisticActor, ProbabilisticTensorDictSequential):
        return None
    modules = list(policy.module)
    if len(modules) != 2 or type(modules[0]) is not TensorDictModule or len(modules[0].out_keys) < 2:
        return None
    return modules[0]


def network_outputs(
    network: TensorDictModule, tensordict: TensorDictBase, params: TensorDictBase | None = None
) -> dict[NestedKey, Any]:
    """Return what ``network`` would write, by key.

    A call on tensors skips the TensorDicts in between, which would cost half as much as the network itself.

    Args:
        network: the network of an actor, from :func:`single_network`.
        tensordict: holds the entries that the network reads.
        params: parameters of the actor to use; None keeps its own.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> split = TensorDictModule(lambda x: x.chunk(2, -1), ["x"], ["a", "b"])
        >>> network_outputs(split, TensorDict(x=torch.arange(4.0)))["b"]
        tensor([2., 3.])
    """
    own = None if params is None else params.get(("module", "0", "module"))
    with swapped(network.module, own):
        values = network.module(*(tensordict[key] for key in network.in_keys))
    return dict(zip(network.out_keys, values, strict=True))
