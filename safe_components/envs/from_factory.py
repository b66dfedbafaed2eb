"""An environment from a function of one's own, which makes one of TorchRL or of Gymnasium."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import torch
from tensordict import TensorDictBase
from torchrl.data import Bounded, Composite, MultiOneHot, OneHot, TensorSpec, Unbounded
from torchrl.envs import Compose, EnvBase, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.transforms import DoubleToFloat, Transform

from safe_components.envs.base import ConstrainedEnv
from safe_components.envs.gymnasium_batch import GymnasiumBatch
from safe_components.envs.gymnasium_spaces import described
from safe_components.envs.time_limit import TimeLimit

# What make_env knows about an environment of TorchRL, and hands to a factory that names it.
_NAMED = ("num_envs", "device", "frame_skip", "max_episode_steps", "cost_keys")


def env_from_factory(
    factory: Callable[..., Any],
    name: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    frame_skip: int = 1,
    max_episode_steps: int | None = None,
    cost_keys: Sequence[str] = ("cost",),
    step_timeout: float | None = None,
    flatten: bool = True,
    **options: Any,
) -> EnvBase:
    """Make an environment by a function or class of one's own.

    A factory of a ``gymnasium.Env`` is called with ``options`` alone, once per copy; the copies are put into
    a `GymnasiumBatch`.

    A factory of a TorchRL ``EnvBase`` is also called with those of ``num_envs``, ``device``, ``frame_skip``,
    ``max_episode_steps`` and ``cost_keys`` that its signature names. What it does not name is done here:
    several copies by a ``SerialEnv``, a time limit by a ``StepCounter``, and the costs from the entries of a
    step that ``cost_keys`` names. Actions are executed clipped to their bounds, float64 becomes float32, and
    ``reset(seed=...)`` is ``set_seed`` and a reset. The environment stays on the device on which it was made.

    Args:
        factory: function or class.
        name: name of the factory, for error messages.
        num_envs: see ``make_env``, as for the other arguments.
        device: device of the learner.
        seed: seed of the environment.
        frame_skip: steps per action.
        max_episode_steps: steps after which an episode is truncated.
        cost_keys: entries that hold the costs.
        step_timeout: seconds after which a Gymnasium environment counts as hanging.
        flatten: whether a Gymnasium environment writes one vector of observations.
        options: further arguments of the factory.

    Raises:
        ValueError: if the factory makes something else, does not take an argument that is needed, or makes an
            environment that the parts cannot use.

    Example:
        >>> from safe_components.envs import PointCircle
        >>> env = env_from_factory(PointCircle, "my_tasks:circle", num_envs=2, x_lim=0.5)
        >>> env.batch_size, env.x_lim
        (torch.Size([2]), 0.5)
    """
    if not callable(factory):
        raise ValueError(
            f"{name} is {described(factory)}, must be a function or class that makes environments"
        )
    given = {
        "num_envs": num_envs,
        "device": torch.device(device),
        "frame_skip": frame_skip,
        "max_episode_steps": max_episode_steps,
        "cost_keys": tuple(cost_keys),
    }
    taken = _taken(factory, given)
    made = None
    if not _makes_torchrl(factory, taken):
        made = factory(**options)
        if not isinstance(made, EnvBase):
            return GymnasiumBatch(
                _Makers(factory, options, made, max_episode_steps),
                num_envs=num_envs,
                device=device,
                seed=seed,
                frame_skip=frame_skip,
                cost_keys=cost_keys,
                step_timeout=step_timeout,
                flatten=flatten,
            )
    if made is None or taken:
        if made is not None:
            made.close()
        made = factory(**taken, **options)
    if not isinstance(made, EnvBase):
        raise ValueError(
            f"{name} made {described(made)}, must make a torchrl.envs.EnvBase or a gymnasium.Env"
        )
    env = _several(made, lambda: factory(**taken, **options), num_envs, name)
    if frame_skip != 1 and "frame_skip" not in taken:
        raise ValueError(
            f"frame_skip is {frame_skip}, but {name} takes no argument frame_skip: let it, so that it sums "
            "reward and costs over the frames, or pass --env.frame-skip 1"
        )
    own_costs = _has_costs(env) and ("cost_keys" in taken or tuple(cost_keys) == ("cost",))
    own_limit = "max_episode_steps" in taken or max_episode_steps is None
    if not (isinstance(env, ConstrainedEnv) and own_costs and own_limit):
        env = env.to("cpu") if env.device is None else env
        _check_action(env, name)
        limit = getattr(made, "max_episode_steps", None) if own_limit else max_episode_steps
        transforms = _adapting(env, None if own_costs else tuple(cost_keys), name)
        if not own_limit:
            transforms.append(StepCounter(limit, step_count_key="steps_since_reset"))
        env = _Adapted(env, Compose(*transforms), name, frame_skip, limit)
    if seed is not None:
        env.set_seed(seed)
    return env


def _taken(factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments ``given`` that the signature of a factory names."""
    parameters = _parameters(factory)
    return {argument: value for argument, value in given.items() if argument in parameters}


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    # The signature of a class of TorchRL is that of its metaclass.
    is_class, declared = isinstance(factory, type), typing.cast(Any, factory)
    try:
        return inspect.signature(declared.__init__ if is_class else declared).parameters
    except ValueError:  # some classes in C have none
        return {}


def _makes_torchrl(factory: Callable[..., Any], taken: Mapping[str, Any]) -> bool:
    """Return whether a factory makes environments of TorchRL, as far as that is known before a call."""
    if isinstance(factory, type):
        return issubclass(factory, EnvBase)
    parameters = _parameters(factory)
    return any(parameters[argument].default is inspect.Parameter.empty for argument in taken)


class _Makers:
    """Return the environment that was made already, and then others by the factory."""

    def __init__(
        self, factory: Callable[..., Any], options: Mapping[str, Any], first: Any, limit: int | None
    ) -> None:
        self._factory, self._options, self._first, self._limit = factory, options, first, limit

    def __call__(self) -> Any:
        env, self._first = self._first, None
        env = self._factory(**self._options) if env is None else env
        if self._limit is None or not isinstance(env, gymnasium.Env):  # GymnasiumBatch refuses other types
            return env
        return TimeLimit(env, self._limit)


def _several(made: EnvBase, make: Callable[[], EnvBase], num_envs: int, name: str) -> EnvBase:
    """Return an environment of ``num_envs`` copies."""
    copies, dims = made.batch_size.numel(), len(made.batch_size)
    if copies == num_envs and dims == (1 if num_envs > 1 else dims) and dims < 2:
        return made
    if dims:
        raise ValueError(
            f"{name} makes an environment of batch size {list(made.batch_size)}, but num_envs is {num_envs}: "
            "let it take num_envs and make [num_envs] copies, or make a single environment of batch size []"
        )
    made.close()
    return SerialEnv(num_envs, make)


def _has_costs(env: EnvBase) -> bool:
    """Return whether an environment has its costs in the form of the parts."""
    spec = env.full_reward_spec.get("cost", None)
    return spec is not None and spec.ndim == len(env.batch_size) + 1 and spec.dtype == torch.float32


def _adapting(env: EnvBase, cost_keys: tuple[str, ...] | None, name: str) -> list[Transform]:
    """Return transforms that give an environment what it lacks of the form of the parts."""
    specs = env.output_spec
    transforms: list[Transform] = [_Executed(env.action_spec_unbatched)]
    doubles = [
        key
        for group in ("full_observation_spec", "full_reward_spec")
        for key, spec in specs[group].items(True, True)
        if spec.dtype == torch.float64
    ]
    actions = ["action"] if env.action_spec.dtype == torch.float64 else []
    if doubles or actions:
        transforms.append(DoubleToFloat(in_keys=doubles, in_keys_inv=actions))
    if cost_keys is not None:
        transforms.append(_Costs(cost_keys, specs, len(env.batch_size), name))
    return transforms


def _check_action(env: EnvBase, name: str) -> None:
    spec = env.action_spec_unbatched
    if isinstance(spec, OneHot | MultiOneHot):
        return
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point or spec.ndim != 1:
        raise ValueError(
            f"{name} has actions that no part can use ({type(spec).__name__}, shape {list(spec.shape)}, "
            f"{spec.dtype}): the spec must be a Bounded vector of floating-point numbers, or one-hot"
        )
    low, high = spec.space.low, spec.space.high
    if not bool(((low < high) & (high - low).isfinite()).all()):
        raise ValueError(
            f"{name} has actions from {low.tolist()} to {high.tolist()}; policies need finite bounds, "
            "low < high: bound the spec, and map the action inside the environment"
        )


class _Adapted(TransformedEnv):  # type: ignore[misc]  # torchrl has no types
    """An environment with transforms that stay with it, and what recipes ask of an environment."""

    def __init__(
        self, env: EnvBase, transforms: Compose, name: str, frame_skip: int, max_episode_steps: int | None
    ) -> None:
        super().__init__(env, transforms)
        self.__dict__.update(name=name, frame_skip=frame_skip, max_episode_steps=max_episode_steps)

    def _reset(
        self, tensordict: TensorDictBase | None = None, *, seed: int | None = None, **kwargs: Any
    ) -> TensorDictBase:
        if seed is not None:
            self.set_seed(seed)
        return super()._reset(tensordict, **kwargs)


class _Executed(Transform):  # type: ignore[misc]  # torchrl has no types
    """The action that is executed: clipped to its bounds. The stored action stays as sampled."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        self._bounds = (spec.space.low, spec.space.high) if isinstance(spec, Bounded) else None

    def _inv_apply_transform(self, action: torch.Tensor) -> torch.Tensor:
        if action.device.type == "cpu" and not bool(action.isfinite().all()):  # elsewhere the host would wait
            row = int((~action.isfinite()).reshape(-1, action.shape[-1]).any(-1).nonzero()[0])
            raise FloatingPointError(f"action of environment {row} is not finite: {action.tolist()}")
        return action if self._bounds is None else action.clamp(*(b.to(action) for b in self._bounds))


class _Costs(Transform):  # type: ignore[misc]  # torchrl has no types
    """Entries of a step as its costs [..., m], float32, beside the reward."""

    def __init__(self, cost_keys: tuple[str, ...], specs: Composite, lead: int, name: str) -> None:
        super().__init__(in_keys=[], out_keys=["cost"])
        self._names, self._size = cost_keys, 0
        found = {**specs["full_observation_spec"], **specs["full_reward_spec"]}
        for key in cost_keys:
            spec: TensorSpec | None = found.get(key)
            if spec is None or spec.ndim not in (lead, lead + 1):
                raise ValueError(
                    f"{name} reports no cost {key!r}: its steps must write an entry of that name, a number "
                    f"or a vector; they write {', '.join(map(str, found))}. Name others with "
                    "cost_keys=(...). To train without costs, name none: --cost-limit none"
                )
            self._size += 1 if spec.ndim == lead else spec.shape[-1]

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        lead = next_tensordict.batch_size
        parts = [next_tensordict.get(key).reshape(*lead, -1).float() for key in self._names]
        nothing = torch.zeros(*lead, 0, device=next_tensordict.device)
        return next_tensordict.exclude(*self._names).set("cost", torch.cat([nothing, *parts], -1))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return tensordict_reset.exclude(*self._names)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        return _without(observation_spec, self._names)

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        cost = Unbounded((*reward_spec.shape, self._size), dtype=torch.float32, device=reward_spec.device)
        reward_spec = _without(reward_spec, self._names)
        reward_spec["cost"] = cost
        return reward_spec


def _without(spec: Composite, names: tuple[str, ...]) -> Composite:
    for key in names:
        if key in spec.keys():  # noqa: SIM118  # a Composite has no __contains__ of its own
            del spec[key]
    return spec
