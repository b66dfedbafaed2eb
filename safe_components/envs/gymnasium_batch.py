"""Several Gymnasium environments of one kind, stepped in one process as one TorchRL environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from safe_components import keys
from safe_components.envs.checks import check_counts
from safe_components.envs.gymnasium_spaces import action_reader, observation_reader
from safe_components.envs.gymnasium_step import CostReader, probe_costs


class GymnasiumBatch(EnvBase):
    r"""N copies of a constrained Gymnasium environment as one batch.

    One call steps the copies one after the other and writes one TensorDict, so TorchRL's own cost
    per step and the policy's forward are paid once for N environment steps:

    | key | shape | dtype |
    |---|---|---|
    | ``observation`` | [N, o] | float32, flattened |
    | ``action`` | [N, a] | float32; one-hot for a discrete action space |
    | ``("next", "reward")`` | [N, 1] | float32, summed over ``frame_skip`` |
    | ``("next", "cost")`` | [N, m] | float32, summed over ``frame_skip`` |
    | ``("next", "terminated" / "truncated" / "done")`` | [N, 1] | bool |

    With N = 1 the leading axis is left out. Every step writes into fresh memory: what was collected
    is never overwritten by a later step.

    **Actions** outside the bounds of the action space are *executed* clipped to them, since a Gaussian
    policy samples outside; the stored action stays as sampled. A discrete action is the argmax.

    **Seeds.** With N = 1 the environment is seeded by ``seed`` itself, as in ``env.reset(seed=seed)``;
    with N > 1, copy i by ``numpy.random.SeedSequence(seed).generate_state(N)[i]``, because
    environments whose episodes count their seed upwards would meet each other's episodes under
    ``seed + i``. The seed is applied at the next reset; later episodes continue the random stream.
    Without a seed, fresh entropy of the operating system is drawn, in every process.

    Args:
        make: called without arguments, returns one ``gymnasium.Env`` whose ``step`` returns 5 values, or
            6 with the cost in third place.
        num_envs: N ≥ 1.
        device: where the tensors are put; the environments themselves run on the CPU.
        seed: see above.
        frame_skip: raw steps per step, ≥ 1; stops early where an episode ends.
        cost_keys: the entries of ``info`` that make up the m costs, in this order. ``("cost",)`` means the
            step's own cost where ``step`` returns 6 values.

    Raises:
        ValueError: no cost in a step (one step is tried at construction), or a space that is not supported.
        FloatingPointError: an action, observation, reward or cost that is not finite; names the key, the copy
            and its step.

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

    # Without this, TorchRL would append a FrameSkipTransform and skip twice.
    _has_frame_skip = True

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
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
        # The loop over the copies is the hot path: without frame skip it calls nothing but their steps.
        self._advance = _step_once if frame_skip == 1 else self._skip
        self._costs = self._cost if frame_skip == 1 else CostReader((), self._cost.size)
        self._set_specs(action_spec)
        self._rows = num_envs
        self._observation = np.zeros((num_envs, self._size), np.float32)
        self._ended = np.zeros((num_envs, 3), bool)  # terminated, truncated, done
        self._steps = np.zeros(num_envs, np.int64)
        self._started = False
        self._seeds: list[int | None] = [None] * num_envs
        self.set_seed(seed)

    def _set_specs(self, action_spec: TensorSpec) -> None:
        batch, device = self.batch_size, self.device
        self.observation_spec = Composite(
            {keys.OBSERVATION: Unbounded((*batch, self._size), dtype=torch.float32, device=device)},
            shape=batch,
        )
        self.action_spec = action_spec
        self.reward_spec = Composite(
            reward=Unbounded((*batch, 1), dtype=torch.float32, device=device),
            cost=Unbounded((*batch, self._cost.size), dtype=torch.float32, device=device),
            shape=batch,
        )
        flag = Categorical(2, shape=(*batch, 1), dtype=torch.bool, device=device)
        self.done_spec = Composite(done=flag.clone(), terminated=flag.clone(), truncated=flag, shape=batch)

    @property
    def reward_key(self) -> str:
        """``"reward"``: the cost stands beside it in ``full_reward_spec``."""
        return "reward"

    @property
    def envs(self) -> tuple[gymnasium.Env, ...]:
        """The N environments."""
        return tuple(self._envs)

    @property
    def max_episode_steps(self) -> int | None:
        """Raw steps after which an episode is truncated; None if nothing limits it."""
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
        # Fresh memory at every step: the tensors handed out are views of it.
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
            with np.errstate(over="ignore"):  # what float32 cannot hold is reported as not finite
                packed[where, :size] = [read(r[0]) for r in results] if read else [r[0] for r in results]
                packed[where, size] = [r[1] for r in results]
                packed[where, size + 1 :] = self._costs(results)
            ended[where, 0], ended[where, 1] = [r[-3] for r in results], [r[-2] for r in results]
            ended[:, 2] = ended[:, 0] | ended[:, 1]
            self._steps[where] += 1
        self._check_finite(packed)
        # A caller may change what it is given, so what a partial reset will repeat is a copy.
        self._observation, self._ended = packed[:, :size].copy(), ended.copy()
        return self._tensordict(packed, ended, step=True)

    def _skip(self, env: gymnasium.Env, action: Any) -> tuple[Any, ...]:
        """``frame_skip`` raw steps as one result of six values, reward and costs summed."""
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
        if self.device.type != "cpu":  # two transfers, whatever the number of keys
            values, flags = values.to(self.device), flags.to(self.device)
        if not self.batch_size:
            values, flags = values[0], flags[0]
        source = dict(zip(("terminated", "truncated", "done"), flags.split(1, -1), strict=True))
        if step:
            parts = values.split((self._size, 1, self._cost.size), -1)
            source |= zip((keys.OBSERVATION, "reward", "cost"), parts, strict=True)
        else:
            source[keys.OBSERVATION] = values
        return TensorDict(source, batch_size=self.batch_size, device=self.device)

    def _step_proc_data(self, next_tensordict_out: TensorDictBase) -> TensorDictBase:
        return next_tensordict_out  # complete as written: spares TorchRL's completion at each step

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
        """The first copy's ``render()``; needs a ``render_mode`` at construction."""
        return self._envs[0].render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close every copy."""
        for env in self._envs:
            env.close()
        super().close(raise_if_closed=raise_if_closed)


def _step_once(env: gymnasium.Env, action: Any) -> tuple[Any, ...]:
    return env.step(action)


def _chosen(mask: torch.Tensor | None, rows: int) -> Sequence[int]:
    return range(rows) if mask is None else np.flatnonzero(mask.cpu().numpy()).tolist()
