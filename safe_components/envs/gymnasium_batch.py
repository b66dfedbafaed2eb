"""Several copies of a Gymnasium environment, stepped in one process as one TorchRL environment."""

from __future__ import annotations

import functools
import math
import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Composite

from safe_components import keys
from safe_components.envs.base import (
    ConstrainedEnv,
    EnvironmentFailure,
    StateError,
    check_counts,
    checked_seed,
)
from safe_components.envs.gymnasium_spaces import (
    ActionReader,
    ObservationReader,
    described,
    observation_entries,
)
from safe_components.envs.gymnasium_step import (
    StepReader,
    Steps,
    UnusableValue,
    check_tuple,
    first_costs,
    read_reset,
)
from safe_components.envs.headless import OPENGL_HINT
from safe_components.envs.object_state import read_object, write_object
from safe_components.envs.random_state import OwnRandomState, global_states
from safe_components.envs.step_timeout import Overdue, Watched


class GymnasiumBatch(ConstrainedEnv):
    r"""N copies of a constrained Gymnasium environment as one batch.

    One call steps the copies one after the other and writes one TensorDict. TorchRL's overhead and the
    policy's forward pass occur once per N environment steps.

    | key | shape | dtype |
    |---|---|---|
    | ``observation`` | [N, o] | float32, flattened |
    | ``action`` | [N, a] | float32; one-hot for a Discrete space, side by side for a MultiDiscrete one |
    | ``("next", "reward")`` | [N, 1] | float32, summed over ``frame_skip`` |
    | ``("next", "cost")`` | [N, m] | float32, summed over ``frame_skip`` |
    | ``("next", "terminated" / "truncated" / "done")`` | [N, 1] | bool |

    With N = 1 the leading axis is absent. Every step writes into fresh memory, so a later step never
    overwrites collected data.

    **Actions** outside the bounds of the action space are *executed* clipped to them, because a Gaussian
    policy samples outside. The stored action stays as sampled. Actions of an integer Box are rounded. A
    discrete action is the argmax.

    **Environments that reset themselves** at the end of an episode leave its last observation in
    ``info["final_obs"]`` or ``info["final_observation"]``, which is then the next observation of that step.

    **Random generators.** An environment that draws from ``numpy.random`` or ``random`` in the trial step
    gets random states of its own, so that its seed determines its episodes (see ``OwnRandomState``).

    **Seeds.** With N = 1 the environment is seeded with ``seed`` itself, as in ``env.reset(seed=seed)``. With
    N > 1, copy i is seeded with ``numpy.random.SeedSequence(seed).generate_state(N)[i]``. Seeds ``seed + i``
    would repeat episodes between the copies of environments that increment their seed per episode. The seed
    is applied at the next reset; later episodes continue the random stream. Without a seed, every process
    draws fresh entropy from the operating system.

    Args:
        make: called without arguments, returns one ``gymnasium.Env`` whose ``step`` returns 5 values, or
            6 with the cost as the third one.
        num_envs: N ≥ 1.
        device: where the tensors are put. The environments themselves run on the CPU.
        seed: see above.
        frame_skip: raw steps per step, ≥ 1, fewer at the end of an episode.
        cost_keys: the entries of ``info`` that make up the m costs, in this order. If ``step`` returns 6
            values, ``("cost",)`` means the step's own cost. Empty for an environment without costs, m = 0.
        step_timeout: seconds after which a call of a copy's ``step`` or ``reset`` counts as hanging; it is
            interrupted after once to twice this time. None waits forever. Only calls in a process's main
            thread can be interrupted, and no computation in C that never returns to Python.

        flatten: whether the observation is one vector in float32, under the key ``observation``. False gives
            each part of a dictionary its own entry, in its shape; images stay in uint8 (see
            `observation_entries`).

    Raises:
        ValueError: if a space is not supported, if a step has no cost (one step is tried at construction), or
            if a ``reset`` or ``step`` returns something else than it must.
        FloatingPointError: if an action, observation, reward or cost is not finite.
        EnvironmentFailure: if a ``reset`` or ``step`` raises; that error is the ``__cause__``.
        TimeoutError: if a ``reset`` or ``step`` hangs.

    Messages about what an environment did name the key, the copy, its step and the environment's name.

    Example:
        >>> import gymnasium
        >>> class Corridor(gymnasium.Env):
        ...     observation_space = gymnasium.spaces.Box(-9, 9, (1,))
        ...     action_space = gymnasium.spaces.Box(-1, 1, (1,))
        ...     def reset(self, *, seed=None, options=None):
        ...         super().reset(seed=seed)
        ...         self.x = self.np_random.uniform(-0.5, 0.5, 1)
        ...         return self.x, {}
        ...     def step(self, action):
        ...         self.x = self.x + action
        ...         return self.x, float(self.x[0]), False, False, {"cost": int(self.x[0] > 1)}
        >>> env = GymnasiumBatch(Corridor, num_envs=3, seed=0)
        >>> rollout = env.rollout(5)
        >>> rollout["next", "cost"].shape
        torch.Size([3, 5, 1])
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        frame_skip: int = 1,
        cost_keys: Sequence[str] = ("cost",),
        step_timeout: float | None = None,
        flatten: bool = True,
    ) -> None:
        check_counts(num_envs=num_envs, frame_skip=frame_skip)
        if step_timeout is not None and not 0 < step_timeout < math.inf:
            raise ValueError(
                f"step_timeout must be a positive number of seconds, or None, got {step_timeout!r}"
            )
        super().__init__(device=torch.device(device), batch_size=[num_envs] if num_envs > 1 else [])
        self.num_envs, self.frame_skip, self.step_timeout = num_envs, frame_skip, step_timeout
        self._watched = Watched(step_timeout)
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._steps = np.zeros(num_envs, np.int64)  # raw steps of the present episodes
        try:
            self._make(make, tuple(cost_keys))
        except BaseException:
            self.close()
            raise
        size, costs = self._read.observation.size, self._read.cost_size
        self._set_specs(size, self._act.spec(self.batch_size, self.device), costs)
        self._entries = () if flatten else tuple(observation_entries(self._envs[0].observation_space))
        if self._entries:
            spec = Composite()
            for entry in self._entries:
                spec[entry.key] = entry.spec
            self.observation_spec = spec.expand(self.batch_size).to(self.device)
        self._observation = np.zeros((num_envs, size), np.float32)
        self._ended = np.zeros((num_envs, 3), bool)  # terminated, truncated, done
        self._started = False
        self._seeds: list[int | None] = [None] * num_envs
        self.set_seed(seed)

    def _make(self, make: Callable[[], gymnasium.Env[Any, Any]], cost_keys: tuple[str, ...]) -> None:
        """Make the copies, after a trial step of the first one that shows where its costs are."""
        first = _made(make)
        self._envs.append(first)
        self.name = first.unwrapped.spec.id if first.unwrapped.spec else type(first.unwrapped).__name__
        try:
            observe, self._act = ObservationReader(first.observation_space), ActionReader(first.action_space)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        before = global_states()
        self._read = self._try(observe, cost_keys)
        if global_states() != before:
            make = functools.partial(OwnRandomState, make, in_step=True, make_again=False)
            self._envs.pop().close()
            self._envs.append(make())
        for i in range(1, self.num_envs):
            self._envs.append(env := _made(make))
            for space in ("observation_space", "action_space"):
                if getattr(env, space) != getattr(first, space):
                    raise ValueError(
                        f"{self.name}: the {space} of environment {i} is {getattr(env, space)}, but that of "
                        f"environment 0 is {getattr(first, space)}; all copies must have the same spaces"
                    )

    def _try(self, observe: ObservationReader, cost_keys: tuple[str, ...]) -> StepReader:
        env = self._envs[0]
        (result,) = self._call([0], "reset", lambda i: env.reset(seed=0))
        with self._located(0):
            read_reset(result, observe)
        env.action_space.seed(0)
        action = env.action_space.sample()
        (result,) = self._call([0], "step", lambda i: env.step(action))
        self._steps[0] = 1
        with self._located(0):
            check_tuple(result)
            read = StepReader(observe, len(result), *first_costs(result, cost_keys, self.name))
        self._checked(read, np.arange(1), [result])
        self._steps[0] = 0
        return read

    @property
    def envs(self) -> tuple[gymnasium.Env[Any, Any], ...]:
        """The N environments."""
        return tuple(self._envs)

    @property
    def max_episode_steps(self) -> int | None:
        """Raw steps after which an episode is truncated; None without a limit."""
        env: Any = self._envs[0]
        while env is not None:
            limit = getattr(env, "_max_episode_steps", None)  # gymnasium's and Safety-Gymnasium's TimeLimit
            if limit is not None:
                return int(limit)
            env = getattr(env, "env", None)
        return None

    def _set_seed(self, seed: int | None) -> None:
        self._seeds = [*self._seeds_from(seed)]

    def _seeds_from(self, seed: int | None) -> list[int]:
        if seed is not None:
            seed = checked_seed(seed)
            if self.num_envs == 1:
                return [seed]
        return [int(state) for state in np.random.SeedSequence(seed).generate_state(self.num_envs)]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self._actions(tensordict.get(keys.ACTION))
        # Every step needs fresh memory, because the returned tensors are views of it.
        size = self._observation.shape[1]
        packed = np.zeros((self.num_envs, size + 1 + self._read.cost_size), np.float32)
        packed[:, :size], ended = self._observation, self._ended.copy()
        mask = tensordict.get("_step", None)  # set by rollouts in which some copies have ended
        rows = _chosen(mask, self.num_envs)
        ended[rows] = False
        envs, sums = self._envs, np.zeros((self.num_envs, 1 + self._read.cost_size))
        for _ in range(self.frame_skip):
            if not len(rows):
                break
            results = self._call(rows, "step", lambda i: envs[i].step(actions[i]))
            where = slice(None) if len(rows) == self.num_envs else rows  # a slice is faster
            self._steps[where] += 1
            steps = self._checked(self._read, rows, results)
            with np.errstate(over="ignore"):  # numbers beyond float32 are reported as not finite
                packed[where, :size] = steps.observation
            sums[where, 0] += steps.reward
            sums[where, 1:] += steps.cost
            if steps.ended.any():
                ended[where, :2] = steps.ended
                rows = rows[~steps.ended.any(1)]
        with np.errstate(over="ignore"):
            packed[:, size:] = sums
        ended[:, 2] = ended[:, 0] | ended[:, 1]
        self._check_finite(packed)
        # Callers may change the returned tensors, so partial resets repeat a copy.
        self._observation, self._ended = packed[:, :size].copy(), ended.copy()
        return self._tensordict(packed, ended, step=True)

    def _actions(self, action: torch.Tensor) -> Any:
        shape = (*self.batch_size, self._act.size)
        if action.shape != shape:
            raise ValueError(f"{self.name}: action has shape {tuple(action.shape)}, must have {shape}")
        actions = action.detach().float().cpu().numpy().reshape(self.num_envs, -1)
        if not np.isfinite(actions).all():
            row = int(np.argwhere(~np.isfinite(actions))[0, 0])
            found = f"action of environment {row} is not finite: {actions[row].tolist()}"
            raise FloatingPointError(f"{found}, in {self._where(row, 1)}")
        return self._act(actions)

    def _call(self, rows: Iterable[int], what: str, call: Callable[[int], Any]) -> list[Any]:
        """Return the results of ``call`` for these copies; say which of them failed, when and how."""
        step = 1 if what == "step" else 0
        results: list[Any] = []
        try:
            with self._watched as results:
                for i in rows:
                    results.append(call(i))
            return results
        except Overdue:
            row = list(rows)[len(results)]
            raise TimeoutError(
                f"{what}() of {self._where(row, step)} did not return within {self.step_timeout:g} s "
                "(step_timeout)"
            ) from None
        except (Exception, SystemExit) as error:
            row = list(rows)[len(results)]
            raise EnvironmentFailure(
                f"{what}() of {self._where(row, step)} raised {_summary(error)}"
            ) from error

    def _checked(self, read: StepReader, rows: np.ndarray, results: list[Any]) -> Steps:
        try:
            steps = read(results)
        except UnusableValue as error:
            raise ValueError(f"{error}, in {self._where(int(rows[error.row]))}") from error
        if steps.cost.size and steps.cost.min() < 0:
            row, column = np.argwhere(steps.cost < 0)[0]
            raise ValueError(
                f"cost is {steps.cost[row, column]:g} in {self._where(int(rows[row]))}; a cost must be at "
                "least 0: let the environment report max(cost, 0), or move the reward out of it"
            )
        return steps

    @contextmanager
    def _located(self, row: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{error}, in {self._where(row)}") from error

    def _where(self, row: int, ahead: int = 0) -> str:
        process = multiprocessing.current_process()
        worker = f", {process.name}" if multiprocessing.parent_process() is not None else ""
        return (
            f"environment {row} of {self.num_envs} at step {self._steps[row] + ahead} of its episode "
            f"({self.name}{worker})"
        )

    def _reset(
        self, tensordict: TensorDictBase | None = None, *, seed: int | None = None, **kwargs: Any
    ) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        rows = _chosen(mask, self.num_envs)
        if not self._started and len(rows) < self.num_envs:
            raise RuntimeError(
                "the first reset must reset every environment: call env.reset() without '_reset'"
            )
        seeds = self._seeds if seed is None else self._seeds_from(seed)
        observation, ended = self._observation.copy(), self._ended.copy()
        results = self._call(rows, "reset", lambda i: self._envs[i].reset(seed=seeds[i], **kwargs))
        self._steps[rows] = 0
        for i, result in zip(rows, results, strict=True):
            self._seeds[i] = None
            with self._located(int(i)), np.errstate(over="ignore"):
                observation[i] = read_reset(result, self._read.observation)
        ended[rows] = False
        self._check_finite(observation)
        self._started, self._observation, self._ended = True, observation, ended
        return self._tensordict(observation.copy(), ended.copy(), step=False)

    def _tensordict(self, packed: np.ndarray, ended: np.ndarray, *, step: bool) -> TensorDict:
        values, flags = torch.from_numpy(packed), torch.from_numpy(ended)
        if self.device.type != "cpu":  # two transfers for all keys together
            values, flags = values.to(self.device), flags.to(self.device)
        if not self.batch_size:
            values, flags = values[0], flags[0]
        source = dict(zip(("terminated", "truncated", "done"), torch.split(flags, 1, -1), strict=True))
        if step:
            parts = torch.split(values, [self._observation.shape[1], 1, self._read.cost_size], -1)
            values, source["reward"], source["cost"] = parts
        if not self._entries:
            source[keys.OBSERVATION] = values
        result = TensorDict(source, batch_size=self.batch_size, device=self.device)
        for key, start, stop, spec in self._entries:
            shape = (*self.batch_size, *spec.shape)
            result.set(key, values[..., start:stop].reshape(shape).to(spec.dtype))
        return result

    def _check_finite(self, packed: np.ndarray) -> None:
        if np.isfinite(packed).all():
            return
        row, column = (int(i) for i in np.argwhere(~np.isfinite(packed))[0])
        size = self._observation.shape[1]
        key = "observation" if column < size else "reward" if column == size else "cost"
        raise FloatingPointError(f"{key} is {packed[row, column]} in {self._where(row)}")

    def state_error(self) -> str | None:
        """Return why the state cannot be saved; None if it can. Call this before the first reset.

        The first copy takes a few steps twice: from a state, and from the same state restored.
        """
        env = self._envs[0]
        self._call([0], "reset", lambda i: env.reset(seed=0))
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(3)]
        try:
            state = read_object(env)
            first = self._outcomes(actions)
            write_object(env, state)
            same = self._outcomes(actions) == first
        except StateError as error:
            return str(error)
        return None if same else f"{type(env.unwrapped).__name__} steps differently after a state is restored"

    def _outcomes(self, actions: Sequence[Any]) -> list[bytes]:
        """Return the observations and rewards of a few steps of the first copy, bit for bit."""
        env, found = self._envs[0], list[bytes]()
        for action in actions:
            (result,) = self._call([0], "step", functools.partial(_step_with, env, action))
            found += [np.asarray(part).tobytes() for part in (self._read.observation(result[0]), result[1])]
            if result[-3] or result[-2]:
                break
        return found

    def get_state(self) -> dict[str, Any]:
        """Return the state of every copy, see `read_object`, and what a partial reset repeats.

        Raises:
            StateError: if a copy has an attribute that cannot be saved.
        """
        return {
            "envs": [read_object(env) for env in self._envs],
            "observation": self._observation.copy(),
            "ended": self._ended.copy(),
            "steps": self._steps.copy(),
            "seeds": list(self._seeds),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that another batch with these arguments returned, after a reset.

        Raises:
            StateError: if the state does not fit.
        """
        if len(state["envs"]) != self.num_envs:
            raise StateError(f"the state is of {len(state['envs'])} copies, not of {self.num_envs}")
        for env, saved in zip(self._envs, state["envs"], strict=True):
            write_object(env, saved)
        self._observation, self._ended = state["observation"].copy(), state["ended"].copy()
        self._steps, self._seeds = state["steps"].copy(), list(state["seeds"])
        self._started = True

    def render(self) -> Any:
        """Call the first copy's ``render()``; the environment needs a ``render_mode`` at construction."""
        return self._envs[0].render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close every copy."""
        for env in self._envs:
            env.close()
        super().close(raise_if_closed=raise_if_closed)


def _step_with(env: gymnasium.Env[Any, Any], action: Any, index: int) -> Any:
    return env.step(action)


def _made(make: Callable[[], gymnasium.Env[Any, Any]]) -> gymnasium.Env[Any, Any]:
    env = make()
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise ValueError(
            f"make returned a vector environment ({type(env).__name__}), which resets its copies itself; it "
            "must return a single environment, and num_envs says how many"
        )
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"make returned {described(env)}, must return a gymnasium.Env")
    return env


def _summary(error: BaseException) -> str:
    """Return the type, message and place of an error in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # PyOpenGL's errors have no text before a context exists
        text = "(no message)"
    hint = ""
    if "values to unpack" in text:
        hint = (
            "; a wrapper for steps of five values around an environment whose steps return six needs "
            "safety_gymnasium.wrappers.SafetyGymnasium2Gymnasium between them"
        )
    if "OpenGL" in f"{type(error).__module__} {text}":
        hint = f"; {OPENGL_HINT}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {text} ({frames[-1].filename}:{frames[-1].lineno}){hint}"


def _chosen(mask: torch.Tensor | None, rows: int) -> np.ndarray:
    return np.arange(rows) if mask is None else np.flatnonzero(mask.cpu().numpy())
