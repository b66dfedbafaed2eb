"""Copies of a JAX simulator, stepped on the device as one TorchRL environment.

Needs JAX, which is an optional extra: import this module by its own name.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded

from safe_components import keys
from safe_components.envs.base import ConstrainedEnv, StateError, check_counts, checked_seed

__all__ = ["JaxBatch", "JaxEnv"]

# Any of these says how JAX and PyTorch share the memory of a GPU.
MEMORY_SETTINGS = (
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
_FAULTS = (
    "",
    "action of environment {} is not finite",
    "observation, reward or cost of environment {} is not finite: the simulation diverged",
    "cost of environment {} is negative, must be at least 0",
)
_ACTION, _DIVERGED, _NEGATIVE = 1, 2, 3


class JaxEnv(Protocol):
    """One copy of a simulator with the interface of Brax, which MuJoCo Playground and CRAX share.

    ``reset`` and ``step`` are pure functions of JAX. A state has ``obs`` [o], ``reward``, ``done``, and the
    dictionaries ``info`` and ``metrics``.
    """

    action_size: int

    def __hash__(self) -> int:
        """Tell environments apart; those of one object share their compiled functions."""

    def reset(self, rng: Any) -> Any:
        """Return the first state of an episode."""

    def step(self, state: Any, action: Any) -> Any:
        """Return the state that follows."""


class _Carry(NamedTuple):
    """What the next step depends on; N copies."""

    state: Any
    steps: Any  # [N], raw steps of the present episodes
    ended: Any  # [N, 2], terminated and truncated
    fault: Any  # [N], the first fault of each copy since the host last looked; an index of _FAULTS
    key: Any


class _Programs(NamedTuple):
    """Compiled functions, and the shapes of what they carry."""

    reset: Callable[..., Any]
    step: Callable[..., Any]
    carry: _Carry
    costs: int


class JaxBatch(ConstrainedEnv):
    r"""N copies of a JAX simulator with costs as one batch, which lives on the device.

    The copies are stepped by one compiled function (``jax.jit`` of ``jax.vmap``). JAX and PyTorch hand each
    other their arrays by DLPack, without a copy through the host. TorchRL's own ``BraxWrapper`` and
    ``MujocoPlaygroundWrapper`` write no cost, and restart every copy when one episode ends.

    | key | shape | dtype |
    |---|---|---|
    | ``observation`` | [N, o] | float32 |
    | ``action`` | [N, a] | float32, in [−1, 1] |
    | ``("next", "reward")`` | [N, 1] | float32, summed over ``frame_skip`` |
    | ``("next", "cost")`` | [N, m] | float32, summed over ``frame_skip`` |
    | ``("next", "terminated" / "truncated" / "done")`` | [N, 1] | bool |

    With N = 1 the leading axis is absent. Actions outside [−1, 1] are *executed* clipped to it, but the
    stored action stays as sampled. ``terminated`` is the simulator's ``done``.

    **Seeds.** All copies draw from one random key, which the seed determines and every reset splits. No two
    copies and no two episodes share a key.

    **Devices.** The simulation runs on the GPU that ``device`` names. If this JAX has no GPU, it runs on the
    CPU, and a warning says so. On a CPU, every step checks its numbers; on a GPU the host looks once in the
    length of an episode, because looking makes it wait.

    **Compilation** takes seconds to minutes at the first reset and the first step. Environments of the same
    ``env`` object, size and options share their compiled functions.

    Args:
        env: the simulator. Its ``info`` or ``metrics`` hold the costs.
        num_envs: N ≥ 1.
        device: where the tensors are put and, if possible, simulated.
        seed: see above; None draws one.
        frame_skip: raw steps per step, ≥ 1, fewer at the end of an episode.
        max_episode_steps: raw steps after which an episode is truncated.
        cost_keys: entries of the state's ``info``, or else of its ``metrics``, that make up the m costs.
            Empty for m = 0.
        name: what messages call the environment; None takes the name of its class.

    Raises:
        ValueError: if a number is out of range, if the environment has no such cost, or if its observation
            is not a vector.
        FloatingPointError: while stepping, if an action, observation, reward or cost is not finite.

    Example:
        >>> class State(NamedTuple):
        ...     obs: Any
        ...     reward: Any
        ...     done: Any
        ...     info: Any
        ...     metrics: Any
        >>> class Corridor:
        ...     action_size = 1
        ...     def state(self, x):
        ...         return State(x, x[0], jnp.float32(0), {"cost": jnp.float32(x[0] > 1)}, {})
        ...     def reset(self, rng):
        ...         return self.state(jax.random.uniform(rng, (1,)))
        ...     def step(self, state, action):
        ...         return self.state(state.obs + action)
        >>> env = JaxBatch(Corridor(), num_envs=3, seed=0)
        >>> env.rollout(5)["next", "cost"].shape
        torch.Size([3, 5, 1])
    """

    def __init__(
        self,
        env: JaxEnv,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        frame_skip: int = 1,
        max_episode_steps: int = 1000,
        cost_keys: Sequence[str] = ("cost",),
        name: str | None = None,
    ) -> None:
        check_counts(num_envs=num_envs, frame_skip=frame_skip, max_episode_steps=max_episode_steps)
        super().__init__(device=torch.device(device), batch_size=[num_envs] if num_envs > 1 else [])
        self.num_envs, self.frame_skip, self.name = num_envs, frame_skip, name or type(env).__name__
        self._limit, self._calls = max_episode_steps, 0
        self._simulator = jax_device(self.device, self.name)
        with jax.default_device(self._simulator):
            try:
                programs = _compiled(env, num_envs, frame_skip, max_episode_steps, tuple(cost_keys))
            except _Unusable as error:
                raise ValueError(f"{self.name}: {error}") from None
            blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), programs.carry)
        self._programs, self._carry = programs, jax.device_put(blank, self._simulator)
        self._all = jax.device_put(np.ones(num_envs, bool), self._simulator)
        size = programs.carry.state.obs.shape[-1]
        action = Bounded(-1.0, 1.0, (*self.batch_size, env.action_size), device=self.device)
        self._set_specs(size, action, programs.costs)
        self.set_seed(seed)

    @property
    def max_episode_steps(self) -> int:
        """Raw steps after which an episode is truncated."""
        return self._limit

    def to(self, device: torch.device | str) -> JaxBatch:
        """Move the specs and the simulation."""
        super().to(device)
        self._simulator = jax_device(self.device, self.name)
        self._carry, self._all = jax.device_put((self._carry, self._all), self._simulator)
        return self

    def _set_seed(self, seed: int | None) -> None:
        entropy = None if seed is None else checked_seed(seed)
        low, high = (int(word) for word in np.random.SeedSequence(entropy).generate_state(2))
        with jax.default_device(self._simulator):  # a key takes 32 bits, and more are folded in
            key = jax.random.fold_in(jax.random.PRNGKey(low >> 1), high)
        self._carry = self._carry._replace(key=jax.device_put(key, self._simulator))

    def state_error(self) -> None:
        """Return None: the state can always be saved."""

    def get_state(self) -> dict[str, Any]:
        """Return the simulator's state, the steps of each episode and the random key, as arrays."""
        leaves = [np.array(leaf) for leaf in jax.tree.leaves(self._carry)]
        return {"leaves": leaves, "calls": self._calls}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that another environment of this simulator and size returned.

        Raises:
            StateError: if the number or the shapes of the arrays differ.
        """
        own, structure = jax.tree.flatten(self._carry)
        leaves = [np.asarray(leaf) for leaf in state["leaves"]]
        if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in own]:
            raise StateError(f"the state is not of {self.num_envs} copies of {self.name}")
        self._carry = jax.device_put(jax.tree.unflatten(structure, leaves), self._simulator)
        self._calls = state["calls"]

    def _reset(self, tensordict: TensorDictBase | None = None, *, seed: int | None = None) -> TensorDictBase:
        if seed is not None:
            self._set_seed(seed)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self._carry = self._programs.reset(self._carry, self._mask(mask))
        self._check()
        return self._tensordict(self._carry.state.obs, self._carry.ended)

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reset the copies that are done; PyTorch does not wait to learn whether any is."""
        return tensordict.update(self._reset(TensorDict({"_reset": tensordict["done"]}, self.batch_size)))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get(keys.ACTION).detach().reshape(self.num_envs, -1)
        live = self._mask(tensordict.get("_step", None))  # set by rollouts in which some copies have ended
        self._carry, signals = self._programs.step(self._carry, self._to_jax(action.float()), live)
        self._calls += 1
        if self._simulator.platform == "cpu" or self._calls % self._limit == 0:
            self._check()
        return self._tensordict(self._carry.state.obs, self._carry.ended, signals)

    def _check(self) -> None:
        """Raise FloatingPointError or ValueError for the first fault; on a GPU, this waits for it."""
        fault = np.asarray(self._carry.fault)
        if not fault.any():
            return
        self._carry = self._carry._replace(fault=jnp.zeros_like(self._carry.fault))
        row = int(fault.nonzero()[0][0])
        every = 1 if self._simulator.platform == "cpu" else self._limit
        when = f"within the last {every} of {self._calls} steps" if self._calls else "at the first reset"
        kind = ValueError if fault[row] == _NEGATIVE else FloatingPointError
        raise kind(f"{self.name}: {_FAULTS[fault[row]].format(row)}, {when}")

    def _mask(self, mask: torch.Tensor | None) -> Any:
        return self._all if mask is None else self._to_jax(mask.reshape(self.num_envs))

    def _to_jax(self, tensor: torch.Tensor) -> Any:
        # JAX reads later than PyTorch might write, so it gets memory of its own.
        device = "cpu" if self._simulator.platform == "cpu" else self.device
        return jax.dlpack.from_dlpack(tensor.to(device, copy=True).contiguous())

    def _to_torch(self, array: Any) -> torch.Tensor:
        # JAX's arrays never change, and callers may write into tensors.
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(array)
        return tensor.to(self.device, copy=True)

    def _tensordict(self, observation: Any, ended: Any, signals: Any = None) -> TensorDict:
        source = {keys.OBSERVATION: self._to_torch(observation)}
        source["terminated"], source["truncated"] = torch.split(self._to_torch(ended), 1, -1)
        source["done"] = source["terminated"] | source["truncated"]
        if signals is not None:
            values = self._to_torch(signals)
            source["reward"], source["cost"] = values[:, :1], values[:, 1:]
        if not self.batch_size:
            source = {key: value[0] for key, value in source.items()}
        return TensorDict(source, batch_size=self.batch_size, device=self.device)


def jax_device(device: torch.device, name: str) -> Any:
    """Return the device on which JAX simulates for a PyTorch device.

    Warns:
        UserWarning: if JAX has no GPU where PyTorch uses one, or if JAX reserves the memory that PyTorch
            needs.
    """
    if device.type != "cuda":
        return jax.local_devices(backend="cpu")[0]
    try:
        gpus = jax.local_devices(backend="gpu")
    except RuntimeError:  # this is how JAX says that it has none
        warnings.warn(
            f"{name} is simulated on the CPU, and every step is copied to {device}: this JAX has no GPU. "
            'pip install "jax[cuda13]" (or cuda12) adds it',
            stacklevel=2,
        )
        return jax.local_devices(backend="cpu")[0]
    if not any(setting in os.environ for setting in MEMORY_SETTINGS):
        warnings.warn(
            f"JAX reserves three quarters of the memory of {device}, which PyTorch then lacks. Set "
            "XLA_PYTHON_CLIENT_PREALLOCATE=false, or a share such as XLA_PYTHON_CLIENT_MEM_FRACTION=0.3, "
            "before the start",
            stacklevel=2,
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    return next((gpu for gpu in gpus if gpu.local_hardware_id == index), gpus[0])


class _Unusable(Exception):
    """The simulator lacks something; the message says what."""


@functools.cache
def _compiled(
    env: JaxEnv, num_envs: int, frame_skip: int, limit: int, cost_keys: tuple[str, ...]
) -> _Programs:
    """Compile the functions of N copies; at their first call, in truth."""
    reset_all, step_all = jax.vmap(env.reset), jax.vmap(env.step)

    # The shapes and dtypes of what a step returns. A reset may hold Python's numbers instead.
    shape_of_key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    shape_of_keys = jax.ShapeDtypeStruct((num_envs, *shape_of_key.shape), shape_of_key.dtype)
    shape_of_action = jax.ShapeDtypeStruct((num_envs, env.action_size), jnp.float32)
    first = jax.eval_shape(reset_all, shape_of_keys)
    shapes = jax.eval_shape(step_all, first, shape_of_action)
    if jax.tree.structure(first) != jax.tree.structure(shapes):
        raise _Unusable("reset and step return states of different structure")
    if not hasattr(shapes.obs, "ndim") or shapes.obs.ndim != 2:
        raise _Unusable("the observation must be one vector; pick or concatenate its parts in a wrapper")

    def signals_of(state: Any) -> Any:
        parts = [state.reward, *(_cost(state, key) for key in cost_keys)]
        return jnp.concatenate([part.reshape(num_envs, -1).astype(jnp.float32) for part in parts], -1)

    def reset(carry: _Carry, mask: Any) -> _Carry:
        def fresh() -> _Carry:
            key, now = jax.random.split(carry.key)
            state = reset_all(jax.random.split(now, num_envs))
            state = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, shapes)
            state = _where(mask, state, carry.state)
            bad = mask & ~jnp.isfinite(state.obs).all(-1)
            return _Carry(
                state,
                jnp.where(mask, 0, carry.steps),
                carry.ended & ~mask[:, None],
                jnp.where((carry.fault == 0) & bad, _DIVERGED, carry.fault),
                key,
            )

        return jax.lax.cond(mask.any(), fresh, lambda: carry)  # type: ignore[no-any-return]

    def step(carry: _Carry, action: Any, live: Any) -> tuple[_Carry, Any]:
        clipped = jnp.clip(action, -1, 1)

        def once(_: int, loop: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
            state, steps, signals, running = loop
            state = _where(running, step_all(state, clipped), state)
            steps = steps + running
            signals = signals + jnp.where(running[:, None], signals_of(state), 0)
            return state, steps, signals, running & (state.done == 0) & (steps < limit)

        none = jnp.zeros((num_envs, width), jnp.float32)
        state, steps, signals, _ = jax.lax.fori_loop(
            0, frame_skip, once, (carry.state, carry.steps, none, live)
        )
        ended = jnp.stack([state.done != 0, steps >= limit], -1)
        finite = jnp.isfinite(state.obs).all(-1) & jnp.isfinite(signals).all(-1)
        fault = jnp.where((signals[:, 1:] < 0).any(-1), _NEGATIVE, 0)
        fault = jnp.where(finite, fault, _DIVERGED)
        fault = jnp.where(jnp.isfinite(action).all(-1), fault, _ACTION)
        fault = jnp.where((carry.fault == 0) & live, fault, carry.fault)
        return _Carry(state, steps, _where(live, ended, carry.ended), fault, carry.key), signals

    width = jax.eval_shape(signals_of, shapes).shape[-1]
    carry = _Carry(
        shapes,
        jax.ShapeDtypeStruct((num_envs,), jnp.int32),
        jax.ShapeDtypeStruct((num_envs, 2), jnp.bool_),
        jax.ShapeDtypeStruct((num_envs,), jnp.int32),
        shape_of_key,
    )
    return _Programs(jax.jit(reset), jax.jit(step), carry, width - 1)


def _cost(state: Any, key: str) -> Any:
    for there in (state.info, state.metrics):
        if key in there:
            return there[key]
    known = sorted({*map(str, state.info), *map(str, state.metrics)})
    raise _Unusable(f"a step has no cost {key!r}; its info and metrics hold {known}: see cost_keys")


def _where(mask: Any, new: Any, old: Any) -> Any:
    """Choose between two trees by copy; ``mask`` is [N], the leaves [N, ...]."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)
