"""Several learners of one kind, whose updates are computed as one batch."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn

from safe_components.critics import CriticLearner, Signal
from safe_components.estep import EStepProjector, GivenMultiplierSolver, ParticleSampler
from safe_components.ops import BaseLoss, noise_from
from safe_components.training.learner import Learner

__all__ = ["Population"]

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


class Population(Learner):
    """Learners of one kind as one batch: an update of all of them costs as many operations as one of one.

    The members stay ordinary learners, which act, observe, save and resume on their own. But each of their
    tensors becomes a slice of one tensor ``[P, ...]``, and their ``update`` runs once for all of them. In it,
    every part is replaced by one that serves all ``P`` members:

    | part | what serves all members |
    |---|---|
    | a learner or `CriticLearner` | its own methods, with its parts replaced in turn |
    | a loss, `ParticleSampler` | `torch.vmap` over the networks ``[P, ...]`` |
    | `EStepProjector` | one call with the leading dimension ``P`` |
    | an optimizer | one optimizer; members with equal settings share a group |
    | a plain value | the value, which must be equal in all members |
    | anything else | the members' parts, one after another |

    So an update must reduce a loss of each member by ``.sum()`` before ``.backward()``, and must count the
    dimensions of a result from the end. Members may differ in whatever is a tensor, an option of an optimizer
    or a setting of a part of the last kind: radius of the KL ball, limits, bounds of the trust region, step
    sizes. All else must be equal.

    The random numbers of an update are drawn beforehand, by :meth:`draw_noise`, from the member's own stream.
    Every member then equals the learner that trains alone, up to rounding.

    Args:
        members: learners that have not been changed otherwise since. Their parts are replaced only here.
        example: the batches of one update of the first member.

    Raises:
        ValueError: if members differ in what must be equal, or if an update draws random numbers by another
            function than `standard_normal`.

    Example:
        >>> class Fit(Learner):
        ...     def __init__(self, target):
        ...         super().__init__()
        ...         self.value = nn.Parameter(torch.zeros(1))
        ...         self.optim = torch.optim.SGD([self.value], lr=target)
        ...     def update(self, batch):
        ...         self.optim.zero_grad()
        ...         return {"x": batch["x"].mean(-1)}
        >>> batches = [TensorDict(x=torch.full((3,), float(i)), batch_size=3) for i in range(2)]
        >>> population = Population([Fit(1.0), Fit(2.0)], batches[:1])
        >>> population.update(torch.stack(batches), population.stack_noise([[], []]))
        {'x': tensor([0., 1.])}
    """

    def __init__(self, members: Sequence[Learner], example: Sequence[TensorDictBase]) -> None:
        super().__init__()
        _require_alike(members)
        self._draws = _recorded_draws(members[0], example)
        self.members = nn.ModuleList(members)
        self._stacks: dict[int, Tensor] = {}
        self._merged = {
            name: _Optimizers([member.optimizers[name] for member in members], self.stacked)
            for name in members[0].optimizers
        }
        self._noise: Sequence[Tensor] = ()
        self._whole: Any = _Together(self, members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers of all members together, by the names of each member's."""
        return {name: merged.optimizer for name, merged in self._merged.items()}

    def draw_noise(self) -> list[Tensor]:
        """Draw the random numbers of one update of one member from the global generator."""
        return [draw() for draw in self._draws]

    def stack_noise(self, noise: Sequence[Sequence[Tensor]]) -> TensorDict:
        """Return the numbers of all members, from :meth:`draw_noise`, as the last batch of an update."""
        columns = {str(index): torch.stack(column) for index, column in enumerate(zip(*noise, strict=True))}
        return TensorDict(columns, [len(self)])

    def update(self, *batches: TensorDictBase) -> dict[str, Tensor]:
        """Make one update of every member.

        Args:
            batches: the batches of the members' update, each with the leading dimension ``P``, and at the end
                those of :meth:`stack_noise`.

        Returns:
            The metrics of the members' update, each with the leading dimension ``P``.
        """
        *own, noise = batches
        self._noise = list(noise.values())
        metrics: dict[str, Tensor] = self._whole.update(*own)
        return metrics

    # --- what parts of several members become -------------------------------------------------------------

    def together(self, parts: Sequence[Any], name: str) -> Any:
        """Return what serves all members in place of their parts of this name."""
        first = parts[0]
        if len({type(part) for part in parts}) > 1:
            raise ValueError(
                f"{name} is a {' and a '.join(sorted({type(part).__name__ for part in parts}))}: "
                "the members of a population must have parts of the same kind"
            )
        if _is_plain(first):
            return _the_same(parts, name)
        if isinstance(first, (Learner, CriticLearner)):
            return _Together(self, parts)
        if isinstance(first, (BaseLoss, ParticleSampler)):
            return _Mapped(self, parts)
        if isinstance(first, EStepProjector):
            return self._project(parts)
        if isinstance(first, torch.optim.Optimizer):
            return next(merged for merged in self._merged.values() if merged.members[0] is first)
        return _InTurn(parts)

    def stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return one tensor ``[P, ...]`` of which the members' tensors have become the slices."""
        whole = self._stacks.get(id(tensors[0]))
        if whole is None:
            if len({tensor.shape for tensor in tensors}) > 1:
                raise ValueError(
                    f"the members' tensors have the shapes {', '.join(str(list(t.shape)) for t in tensors)}: "
                    "networks of a population must have the same sizes"
                )
            whole = torch.stack([tensor.detach() for tensor in tensors])
            for tensor, part in zip(tensors, whole.unbind(), strict=True):
                tensor.data = part
            if tensors[0].requires_grad:
                whole.requires_grad_().grad = torch.zeros_like(whole)
            self._stacks[id(tensors[0])] = whole
        return whole

    def stacked_networks(self, networks: Sequence[TensorDictBase]) -> TensorDict:
        """Return the same of every tensor of the members' networks."""
        whole = TensorDict({}, [len(networks)])
        for key in networks[0].keys(True, True):
            whole[key] = self.stacked([network.get(key) for network in networks])
        return whole

    def take_noise(self, count: int) -> None:
        """Note that so many of the update's random numbers have been used."""
        self._noise = self._noise[count:]

    @property
    def noise_left(self) -> tuple[Tensor, ...]:
        """The random numbers that the update has not used yet, each ``[P, ...]``."""
        return tuple(self._noise)

    def _project(self, parts: Sequence[EStepProjector]) -> EStepProjector:
        first, solvers = parts[0], [part.solver for part in parts]
        solver: Any = solvers[0]
        if isinstance(solver, GivenMultiplierSolver):
            prices = [part.multiplier for part in solvers if isinstance(part, GivenMultiplierSolver)]
            solver = GivenMultiplierSolver(
                lambda: torch.stack([price() for price in prices]),
                solver.solver,
                in_spreads=solver.in_spreads,
            )
        options = {"warm_start": first.warm_start, "check_finite": first.check_finite}
        whole = EStepProjector(float(first.epsilon), first.cost_limits, solver, first.infeasible, **options)
        for name in ("epsilon", "cost_limits", "eta", "lam"):
            setattr(whole, name, self.stacked([getattr(part, name) for part in parts]))
        return whole


class _Together:
    """Learners whose methods run once for all of them: every attribute serves all members."""

    def __init__(self, population: Population, parts: Sequence[Any]) -> None:
        self._population, self._parts = population, parts

    def __getattr__(self, name: str) -> Any:
        own = inspect.getattr_static(type(self._parts[0]), name, None)
        if isinstance(own, property) and own.fget is not None:
            return own.fget(self)
        if isinstance(own, types.FunctionType):
            return types.MethodType(own, self)
        found = self._population.together([getattr(part, name) for part in self._parts], name)
        self.__dict__[name] = found
        return found


class _Mapped:
    """Modules whose calls are one call of the first of them, mapped over the tensors of all."""

    def __init__(self, population: Population, parts: Sequence[nn.Module]) -> None:
        self._population, self._part = population, parts[0]
        held = {**vars(parts[0]), **parts[0]._modules}
        names = [name for name, value in held.items() if isinstance(value, TensorDictBase | TensorDictParams)]
        self._networks = {
            name: population.stacked_networks([getattr(part, name) for part in parts]) for name in names
        }
        places = [list(_tensor_places(part)) for part in parts]
        self._places = places[0]
        self._tensors = [
            population.stacked([holder[name] for holder, name in same]) for same in zip(*places, strict=True)
        ]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        return functools.partial(self._call, name) if callable(value) else value

    def __call__(self, *arguments: Any) -> Any:
        return self._call("__call__", *arguments)

    def _call(self, method: str, *arguments: Any) -> Any:
        used = 0

        def one(
            networks: Mapping[str, TensorDictBase],
            tensors: Sequence[Tensor],
            noise: Sequence[Tensor],
            *own: Any,
        ) -> Any:
            def next_noise(size: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
                nonlocal used
                used += 1
                return noise[used - 1]

            with self._holding(networks, tensors), noise_from(next_noise):
                return getattr(self._part, method)(*own)

        left = self._population.noise_left
        result = torch.vmap(one)(self._networks, self._tensors, left, *arguments)
        self._population.take_noise(used)
        return result

    @contextmanager
    def _holding(self, networks: Mapping[str, TensorDictBase], tensors: Sequence[Tensor]) -> Iterator[None]:
        """Return a context in which the part computes with these networks and tensors in place of its own."""
        attributes = vars(self._part)
        before = {name: attributes[name] for name in networks if name in attributes}
        own = [holder[name] for holder, name in self._places]
        attributes.update(networks)  # they come before the submodules of the same names
        for (holder, name), tensor in zip(self._places, tensors, strict=True):
            holder[name] = tensor
        try:
            yield
        finally:
            for (holder, name), tensor in zip(self._places, own, strict=True):
                holder[name] = tensor
            for name in networks:
                del attributes[name]
            attributes.update(before)


class _Optimizers:
    """The optimizers of all members as one, over the same parameters and the same moments.

    Parameters with equal settings share a group, so that their step is a single fused operation.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], stacked: Callable[[Sequence[Tensor]], Tensor]
    ) -> None:
        self.members = optimizers
        groups: dict[str, dict[str, Any]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                settings = {name: value for name, value in group.items() if name != "params"}
                same = groups.setdefault(repr(sorted(settings.items())), {**settings, "params": []})
                same["params"] += group["params"]
        parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
        if len({len(own) for own in parameters}) > 1:
            raise ValueError("the members' optimizers must have the same number of parameters")
        self.gradients: list[Tensor] = []
        for alike in zip(*parameters, strict=True):
            gradient = stacked(alike).grad
            assert gradient is not None
            self.gradients.append(gradient)
            for parameter, part in zip(alike, gradient.unbind(), strict=True):
                parameter.grad = part
        kind: Any = type(optimizers[0])
        self.optimizer: torch.optim.Optimizer = kind(list(groups.values()))
        for optimizer, own in zip(optimizers, parameters, strict=True):
            for parameter in own:  # one record of moments, for the member's checkpoint and for the step
                self.optimizer.state[parameter] = optimizer.state[parameter]

    def zero_grad(self) -> None:
        torch._foreach_zero_(self.gradients)

    def step(self) -> None:
        self.optimizer.step()


class _InTurn:
    """Parts that are called one after another, each with its own slice of every tensor."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: _stack_results(
            [
                getattr(part, name)(*(a[index] if isinstance(a, Tensor) else a for a in arguments))
                for index, part in enumerate(self._parts)
            ]
        )


def _stack_results(results: Sequence[Any]) -> Any:
    first = results[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: torch.stack([result[name] for result in results]) for name in first}
    return torch.stack(list(results))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) or isinstance(item, Signal) for item in value)
    return isinstance(value, _PLAIN)


def _the_same(values: Sequence[Any], name: str) -> Any:
    for value in values[1:]:
        if value != values[0]:
            raise ValueError(
                f"{name} is {values[0]} in one member and {value} in another, but it must be the same in all "
                "members of a population"
            )
    return values[0]


def _networks_in(part: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a part, also those that it keeps out of its module tree."""
    for module in part.modules():
        if not isinstance(module, TensorDictParams):
            yield module
            for value in vars(module).values():
                if isinstance(value, nn.Module):
                    yield from value.modules()


def _require_alike(members: Sequence[Learner]) -> None:
    """Raise ValueError if losses or solvers of members differ in a plain value, which all would share."""
    for name, first in members[0].named_modules():
        if not isinstance(first, (BaseLoss, ParticleSampler, EStepProjector)):
            continue
        for other in members[1:]:
            pairs = itertools.zip_longest(_networks_in(first), _networks_in(other.get_submodule(name)))
            for one, two in pairs:
                if type(one) is not type(two):
                    kinds = f"{type(one).__name__} and {type(two).__name__}"
                    raise ValueError(f"{name} has parts of different kinds in a population: {kinds}")
                for key, value in vars(one).items():
                    if isinstance(value, types.FunctionType):
                        raise ValueError(
                            f"{type(one).__name__}.{key} is a function of one member, but all members of a "
                            "population would share it"
                        )
                    if _is_plain(value):
                        _the_same([value, vars(two).get(key)], f"{type(one).__name__}.{key.lstrip('_')}")


def _tensor_places(part: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the dictionary and the name of every parameter and buffer outside of networks."""
    for module in part.modules():
        if not isinstance(module, TensorDictParams):
            for holder in (module._parameters, module._buffers):
                yield from ((holder, name) for name, value in holder.items() if value is not None)


def _recorded_draws(member: Learner, example: Sequence[TensorDictBase]) -> list[Callable[[], Tensor]]:
    """Return what draws each of the random numbers of an update, found by one update of a copy."""
    draws: list[Callable[[], Tensor]] = []
    device = next(member.parameters()).device
    generator: Any = torch.cuda if device.type == "cuda" else torch

    def note(size: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        draws.append(functools.partial(torch.randn, size, dtype=dtype, device=device))
        return draws[-1]()

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        before = generator.get_rng_state()
        with noise_from(note):
            copy.deepcopy(member).update(*(batch.clone() for batch in example))
        after = generator.get_rng_state()
        generator.set_rng_state(before)
        for draw in draws:
            draw()
        if not torch.equal(after, generator.get_rng_state()):
            raise ValueError(
                f"an update of {type(member).__name__} draws random numbers that cannot be drawn beforehand: "
                "its parts must take them from safe_components.ops.standard_normal"
            )
    return draws
