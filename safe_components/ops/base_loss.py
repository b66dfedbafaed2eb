"""The base of every loss: what TorchRL and PyTorch ask of a loss beyond TorchRL's own base class."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

Reduction = Literal["mean", "sum", "none"]


def reduced(values: Tensor, how: Reduction) -> Tensor:
    """Reduce the losses of single states ``[...]`` to their mean or their sum ``[]``, or return them.

    Example:
        >>> reduced(torch.tensor([1.0, 3.0]), "mean")
        tensor(2.)
    """
    if how == "none":
        return values
    return values.mean() if how == "mean" else values.sum()


def require_states(shape: torch.Size, name: str) -> None:
    """Raise ValueError if a batch of this shape holds no states: a mean over none is not a number.

    Example:
        >>> require_states(torch.Size([0, 3]), "observation")
        Traceback (most recent call last):
        ValueError: observation of shape (0, 3) holds no state; a batch needs at least one
    """
    if 0 in shape:
        raise ValueError(f"{name} of shape {tuple(shape)} holds no state; a batch needs at least one")


def transformed() -> bool:
    """Whether ``torch.func`` maps or differentiates the caller; then no value can be read.

    Example:
        >>> _ = torch.vmap(lambda x: print(transformed()) or x)(torch.zeros(2))
        True
        >>> transformed()
        False
    """
    return bool(torch._C._are_functorch_transforms_active())


def differentiated() -> bool:
    """Whether ``torch.func`` differentiates the caller, any number of times.

    Example:
        >>> _ = torch.func.grad(lambda x: print(differentiated()) or x)(torch.zeros(()))
        True
        >>> _ = torch.vmap(lambda x: print(differentiated()) or x)(torch.zeros(2))
        False
    """
    levels = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() != torch._C._functorch.TransformType.Vmap for level in levels)


class BaseLoss(LossModule):  # type: ignore[misc]  # TorchRL has no types
    """Abstract base: a ``LossModule`` with a reduction, deep copies that train, and functional calls.

    * ``reduction`` tells what a loss returns: the mean over the states of a batch, their sum, or the loss of
      each state.
    * A deep copy holds one copy of each parameter, wherever it is referred to. TensorDict copies its entries
      regardless of what was copied already, so the networks and the optimizers that are copied along would
      hold others.
    * `torch.func.functional_call` computes with the parameters that it is given.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if ``reduction`` is unknown.
    """

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction={reduction!r} is not one of {', '.join(get_args(Reduction))}")
        self.reduction: Reduction = reduction

    def convert_to_functional(self, module: nn.Module, module_name: str, *args: Any, **kwargs: Any) -> None:
        """Hold the module's parameters as ``<module_name>_params``, see TorchRL."""
        super().convert_to_functional(module, module_name, *args, **kwargs)
        for name in (f"{module_name}_params", f"target_{module_name}_params"):
            if name in self._modules:
                self._modules[name] = _Params(self._modules[name]._param_td, no_convert=True)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their names; those of target networks are not among them."""
        for name, parameter in nn.Module.named_parameters(self, prefix, recurse, remove_duplicate):
            if not name.startswith("_target"):
                yield name, parameter

    def __deepcopy__(self, memo: dict[int, Any]) -> BaseLoss:
        for params in self.children():
            if isinstance(params, TensorDictParams):
                copied = params.apply(lambda leaf: copy.deepcopy(leaf, memo), filter_empty=False)
                memo[id(params)] = _Params(copied, no_convert=True)
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        """No value estimator is involved."""


class _Params(TensorDictParams):  # type: ignore[misc]  # TensorDict has no types
    """Parameters of a network, whose levels can be entered as submodules.

    `torch.func.functional_call` walks along the names of the parameters and puts its own in their places. In
    a ``TensorDictParams`` it would reach copies of the inner levels, and would ignore what it was given.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and isinstance(self._param_td.get(name, None), TensorDictBase):
            return _Level(self._param_td, (name,))
        return super().__getattr__(name)


class _Level(nn.Module):
    """One level of a network's parameters: its attributes are entries of a TensorDict."""

    def __init__(self, root: TensorDictBase, path: tuple[str, ...]) -> None:
        super().__init__()
        self.__dict__.update(_root=root, _path=path)

    def __getattr__(self, name: str) -> Any:
        path = (*self._path, name)
        value = self._root.get(path, None)
        if value is None:
            raise AttributeError(name)
        return value if isinstance(value, Tensor) else _Level(self._root, path)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_path" not in self.__dict__:
            super().__setattr__(name, value)
            return
        with self._root.unlock_() if self._root.is_locked else nullcontext():
            self._root.set((*self._path, name), value)
