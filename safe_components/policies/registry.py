"""The registry of policy builders, by which a saved policy is made again from plain data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import nn

_REQUIRED = ("observation_dim", "action_low", "action_high")
_ATTRIBUTE = "_safe_components_description"
_BUILDERS: dict[str, Callable[..., nn.Module]] = {}

Build = TypeVar("Build", bound=Callable[..., nn.Module])


def policy_builder(build: Build) -> Build:
    """Register a function that makes a policy, and let it note its arguments on every policy it makes.

    A checkpoint holds the name of the function and its arguments beside the weights, so the policy can be
    made again without its recipe and without running code from the file. Decorate the function that makes a
    policy of your own to save and load it in the same way.

    Args:
        build: function with the arguments ``observation_dim``, ``action_low`` and ``action_high``, and
            others. It returns a TensorDict module that writes ``action [..., a]``. Arguments are numbers,
            strings, None, tensors or sequences of these, or activation classes of ``torch.nn``.

    Raises:
        ValueError: if an argument is missing, or if another function has the same name.

    Example:
        >>> from safe_components.policies import deterministic_policy
        >>> policy = deterministic_policy(3, [-1.0], [1.0], hidden_sizes=(8,))
        >>> policy_description(policy)["builder"]
        'deterministic_policy'
        >>> build_policy(policy_description(policy))(torch.zeros(3)).shape
        torch.Size([1])
    """
    name, signature = build.__name__, inspect.signature(build)
    if missing := [argument for argument in _REQUIRED if argument not in signature.parameters]:
        raise ValueError(f"the policy builder {name} must take {', '.join(missing)}")
    if name in _BUILDERS and _source(_BUILDERS[name]) != _source(build):
        raise ValueError(f"another policy builder has the name {name!r}: rename one of them")

    @functools.wraps(build)
    def noted(*args: Any, **kwargs: Any) -> nn.Module:
        policy = build(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        arguments = {key: _to_plain(key, value) for key, value in given.arguments.items()}
        setattr(policy, _ATTRIBUTE, {"builder": name, "module": build.__module__, "arguments": arguments})
        return policy

    _BUILDERS[name] = noted
    return cast(Build, noted)


def policy_description(policy: nn.Module) -> dict[str, Any] | None:
    """Return the builder of a policy and its arguments, as plain data; None without a registered builder."""
    return getattr(policy, _ATTRIBUTE, None)


def build_policy(description: Mapping[str, Any]) -> nn.Module:
    """Make a policy from the result of :func:`policy_description`; its weights are new.

    Raises:
        ValueError: if no such builder is registered, or if it refuses the arguments.
    """
    name = description.get("builder")
    if name not in _BUILDERS:
        module = str(description.get("module"))
        own = module.replace(".", "").isidentifier() and module != "__main__"
        raise ValueError(
            f"no policy builder {name!r} is registered (there are {', '.join(sorted(_BUILDERS))}): "
            + (f"import {module}, where" if own else "import the file in which")
            + " @policy_builder decorates it"
        )
    arguments = description.get("arguments", {})
    try:
        return _BUILDERS[name](**{key: _from_plain(value) for key, value in arguments.items()})
    except TypeError as error:
        raise ValueError(f"the policy builder {name} refuses the arguments {arguments}: {error}") from None


def _source(function: Callable[..., Any]) -> tuple[str, str]:
    """Return the module and the qualified name of a function."""
    return function.__module__, function.__qualname__


def _to_plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_to_plain(name, item) for item in value]
    own_name = getattr(value, "__name__", "")
    if isinstance(value, type) and _activation(own_name) is value:
        return {"torch.nn": own_name}
    raise ValueError(
        f"{name}={value!r} cannot be saved with the policy: use numbers, strings, tensors, sequences of "
        "these, or activation classes of torch.nn"
    )


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_plain(item) for item in value)
    if isinstance(value, Mapping):
        activation = _activation(str(value.get("torch.nn")))
        if activation is None:
            raise ValueError(f"{dict(value)!r} names no activation of torch.nn")
        return activation
    return value


def _activation(name: str) -> type[nn.Module] | None:
    return getattr(nn.modules.activation, name, None) if name in nn.modules.activation.__all__ else None
