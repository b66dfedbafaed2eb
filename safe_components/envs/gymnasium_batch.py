"""Several copies of a Gymnasium environment, stepped in one process as one TorchRL environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase

from safe_components import keys
from safe_components.envs.base import ConstrainedEnv, check_counts
from safe_components.envs.gymnasium_spaces import action_reader, observation_reader
from safe_components.envs.gymnasium_step import CostReader, probe_costs


class GymnasiumBatch(ConstrainedEnv):
    r"""N copies of a constrained Gymnasium environment as one batch.

    One call steps the copies one after the other and writes one TensorDict. TorchRL's overhead and the
    policy's forward pass occur once per N environment steps.

    | key | shape | dtype |
    |---|---|---|
    | ``observation`` | [N, o] | float32, flattened |
    | ``action`` | [N, a] | float32; one-hot for a discrete action space |
    | ``("next", "reward")`` | [N, 1] | float32, summed over ``frame_skip`` |
    | ``("next", "cost")`` | [N, m] | float32, summed over ``frame_skip`` |
    | ``("next", "terminated" / "truncated" / "done")`` | [N, 1] | bool |

    With N = 1 the leading axis is absent. Every step writes into fresh memory, so a later step never
    overwrites collected data.

    **Actions** outside the bounds of the action space are *executed* clipped to them, because a Gaussian
    policy samples outside. The stored action stays as sampled. A discrete action is the argmax.

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
            values, ``("cost",)`` means the step's own cost.

    Raises:
        ValueError: if a step has no cost (one step is tried at construction), or if a space is not supported.
        FloatingPointError: if an action, observation, reward or cost is not finite. The message names the
            key, the copy and its step.

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
    ) -> None:
        check_counts(num_envs=num_envs, frame_skip=frame_skip)
        super().__init__(device=torch.device(device), batch_size=[num_envs] if num_envs > 1 else [])
        self._envs = [make() for _ in range(num_envs)]
        self.num_envs = num_envs
        self.frame_skip = frame_skip
        first = self._envs[0]
        self._read_observation = observation_reader(first.observation_space)
        self._size = spaces.flatdim(first.observation_space)
        action_spec, self._read_action = action_reader(first.action_space, self.batch_size, self.device)
        try:
            self._cost: CostReader = probe_costs(first, tuple(cost_keys))
        except BaseException:
            self.close()
            raise
        # The loop over the copies is the hot path. Without frame skip it only calls their steps.
        self._advance = _step_once if frame_skip == 1 else self._skip
        self._costs = self._cost if frame_skip == 1 else CostReader((), self._cost.size)
        self._set_specs(self._size, action_spec, self._cost.size)
        self._rows = num_envs
        self._observation = np.zeros((num_envs, self._size), np.float32)
        self._ended = np.zeros((num_envs, 3), bool)  # terminated, truncated, done
        self._steps = np.zeros(num_envs, np.int64)
        self._started = False
        self._seeds: list[int | None] = [None] * num_envs
        self.set_seed(seed)

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
        if seed is None or self.num_envs > 1:
            self._seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(self.num_envs)]
        else:
            self._seeds = [int(seed)]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        rows, size = self._rows, self._size
        actions = self._read_action(tensordict.get(keys.ACTION).detach().cpu().numpy().reshape(rows, -1))
        # Every step needs fresh memory, because the returned tensors are views of it.
        packed = np.zeros((rows, size + 1 + self._cost.size), np.float32)
        ended = np.zeros((rows, 3), bool)
        mask = tensordict.get("_step", None)  # set by rollouts in which some copies have ended
        if mask is None:
            where: Any = slice(None)
            results = [self._advance(env, action) for env, action in zip(self._envs, actions, strict=True)]
        else:
            where = np.flatnonzero(mask.cpu().numpy())
            results = [self._advance(self._envs[i], actions[i]) for i in where]
            packed[:, :size], ended[:] = self._observation, self._ended
        if results:
            read = self._read_observation
            with np.errstate(over="ignore"):  # numbers beyond float32 are reported as not finite
                packed[where, :size] = [read(r[0]) for r in results] if read else [r[0] for r in results]
                packed[where, size] = [r[1] for r in results]
                packed[where, size + 1 :] = self._costs(results)
            ended[where, 0], ended[where, 1] = [r[-3] for r in results], [r[-2] for r in results]
            ended[:, 2] = ended[:, 0] | ended[:, 1]
            self._steps[where] += 1
        self._check_finite(packed)
        # Callers may change the returned tensors, so partial resets repeat a copy.
        self._observation, self._ended = packed[:, :size].copy(), ended.copy()
        return self._tensordict(packed, ended, step=True)

    def _skip(self, env: gymnasium.Env[Any, Any], action: Any) -> tuple[Any, ...]:
        """Take ``frame_skip`` raw steps; return six values, with reward and costs summed."""
        reward, cost = 0.0, np.zeros(self._cost.size)
        for _ in range(self.frame_skip):
            result = env.step(action)
            reward += float(result[1])
            cost += self._cost([result])[0]
            if result[-3] or result[-2]:
                break
        return result[0], reward, cost, result[-3], result[-2], {}

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        chosen = _chosen(mask, self._rows)
        if not self._started and len(chosen) < self._rows:
            raise RuntimeError(
                "the first reset must reset every environment: call env.reset() without '_reset'"
            )
        observation, ended = self._observation.copy(), self._ended.copy()
        read = self._read_observation
        for i in chosen:
            seed, self._seeds[i] = self._seeds[i], None
            first, _ = self._envs[i].reset(seed=seed, **kwargs)
            with np.errstate(over="ignore"):
                observation[i] = read(first) if read else first
            ended[i] = False
            self._steps[i] = 0
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
            parts = torch.split(values, [self._size, 1, self._cost.size], -1)
            source |= zip((keys.OBSERVATION, "reward", "cost"), parts, strict=True)
        else:
            source[keys.OBSERVATION] = values
        return TensorDict(source, batch_size=self.batch_size, device=self.device)

    def _check_finite(self, packed: np.ndarray) -> None:
        if np.isfinite(packed).all():
            return
        row, column = (int(i) for i in np.argwhere(~np.isfinite(packed))[0])
        size = self._size
        key = "observation" if column < size else "reward" if column == size else "cost"
        raise FloatingPointError(
            f"{key} is {packed[row, column]} in environment {row} of {self.num_envs} "
            f"at step {self._steps[row]} of its episode"
        )

    def render(self) -> Any:
        """Call the first copy's ``render()``; the environment needs a ``render_mode`` at construction."""
        return self._envs[0].render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close every copy."""
        for env in self._envs:
            env.close()
        super().close(raise_if_closed=raise_if_closed)


def _step_once(env: gymnasium.Env[Any, Any], action: Any) -> tuple[Any, ...]:
    return env.step(action)


def _chosen(mask: torch.Tensor | None, rows: int) -> Sequence[int]:
    return range(rows) if mask is None else np.flatnonzero(mask.cpu().numpy()).tolist()
