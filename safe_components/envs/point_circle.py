"""PointCircle, a batched Circle task with walls in pure torch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded

from safe_components import keys
from safe_components.envs._draw_point_circle import draw_point_circle
from safe_components.envs.base import ConstrainedEnv, StateError, check_counts, checked_seed

COSTS = ("walls", "speed")
_TRAIL = 60  # positions drawn


class PointCircle(ConstrainedEnv):
    r"""Run around a circle as fast as possible, without leaving the band between two walls.

    A point mass with position p = (x, y) [m] and velocity v [m/s] accelerates by an action a ∈ [−1, 1]²
    times ``acceleration`` [m/s²], against a drag of ``drag`` · v [1/s]. With ρ = exp(−drag·dt) and
    u = a · acceleration / drag (the terminal velocity) the motion over a step of ``dt`` seconds is exact:

        v' = u + (v − u) ρ,       p' = p + u dt + (v − u) (1 − ρ) / drag

    so t steps of one action end in v_t = u + (v₀ − u) ρᵗ, p_t = p₀ + u t dt + (v₀ − u)(1 − ρᵗ) / drag.
    The state reached determines the reward and costs of a step:

        reward = (x·v_y − y·v_x) / |p| / (1 + | |p| − radius |)     [m/s, counter-clockwise]
        cost "walls" = 1 where |x| > x_lim, else 0;      cost "speed" = 1 where |v| > speed_limit, else 0

    An episode starts at rest, uniformly in the square |x|, |y| ≤ x_lim / 2. It is truncated after
    ``episode_length`` steps and never terminates. The observation is (x, y, v_x, v_y). Actions outside
    the bounds are executed clipped to them, but the stored action stays as sampled.

    With the defaults, whole courses optimized through the motion (``benchmarks/circle_bound.py``) return
    252 at 91 steps outside the walls if cost is ignored, 214 at a mean of 25 steps, and 197 without such
    steps. A controller that knows the start can run them; better courses may exist.

    Args:
        num_envs: number of copies N. The batch size is [N], or [] for one copy.
        device: any torch device. A step does not synchronize with the host.
        seed: seed of the starting positions; None draws one.
        costs: which of ``"walls"``, ``"speed"`` make up the m costs, in this order; none of them for m = 0.
        frame_skip: motions per step. Reward and cost are summed.
        episode_length: motions per episode, a multiple of ``frame_skip``.
        radius: radius of the circle [m].
        x_lim: distance of the walls from the center [m].
        speed_limit: speed beyond which the cost ``"speed"`` is paid [m/s].
        acceleration: largest acceleration along each axis [m/s²].
        drag: damping rate [1/s].
        dt: seconds per motion.
        dtype: dtype of observation and action. Reward and cost are always float32.
        render_mode: ``"rgb_array"`` enables ``render``. Each step then copies one position to the host.

    Raises:
        ValueError: if a number is out of range, or if a cost or the render mode is unknown.
        FloatingPointError: if an action is not finite.

    Example:
        >>> env = PointCircle(num_envs=4, seed=0)
        >>> rollout = env.rollout(200)
        >>> rollout["next", "cost"].shape, bool(rollout["next", "truncated"][:, -1].all())
        (torch.Size([4, 200, 1]), True)
    """

    _drift: torch.Tensor
    _push: torch.Tensor
    _state: torch.Tensor
    _left: torch.Tensor
    _finite: torch.Tensor

    def __init__(
        self,
        num_envs: int = 1,
        *,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        costs: Sequence[str] = ("walls",),
        frame_skip: int = 1,
        episode_length: int = 200,
        radius: float = 1.0,
        x_lim: float = 0.7,
        speed_limit: float = 1.0,
        acceleration: float = 2.0,
        drag: float = 1.0,
        dt: float = 0.05,
        dtype: torch.dtype = torch.float32,
        render_mode: str | None = None,
    ) -> None:
        check_counts(num_envs=num_envs, frame_skip=frame_skip, episode_length=episode_length)
        if episode_length % frame_skip:
            raise ValueError(f"episode_length {episode_length} must be a multiple of frame_skip {frame_skip}")
        lengths = {"radius": radius, "x_lim": x_lim, "speed_limit": speed_limit, "acceleration": acceleration}
        for name, value in {**lengths, "drag": drag, "dt": dt}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        unknown = [cost for cost in costs if cost not in COSTS]
        if unknown:
            raise ValueError(f"costs must be some of {COSTS}, got {tuple(costs)!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        super().__init__(device=torch.device(device), batch_size=[num_envs] if num_envs > 1 else [])
        self.num_envs, self.frame_skip, self.episode_length = num_envs, frame_skip, episode_length
        self.costs, self.radius, self.x_lim, self.speed_limit = tuple(costs), radius, x_lim, speed_limit
        decay = math.exp(-drag * dt)
        reach = (1 - decay) / drag
        terminal = acceleration / drag
        options: dict[str, Any] = {"device": self.device, "dtype": dtype}
        eye, zero = torch.eye(2, **options), torch.zeros(2, 2, **options)
        # The motion as a row vector: state' = state @ drift + action @ push. Buffers follow env.to(device).
        drift = torch.cat([torch.cat([eye, zero], 1), torch.cat([reach * eye, decay * eye], 1)])
        push = terminal * torch.cat([(dt - reach) * eye, (1 - decay) * eye], 1)
        buffers = {
            "_drift": drift,
            "_push": push,
            "_state": torch.zeros(num_envs, 4, **options),
            "_left": torch.zeros(num_envs, 1, dtype=torch.int32, device=self.device),
            "_finite": torch.ones((), dtype=torch.bool, device=self.device),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self._calls = 0
        self._generator = torch.Generator(device=self.device)
        self.render_mode, self._trail = render_mode, deque[tuple[float, float]](maxlen=_TRAIL)
        action_spec = Bounded(-1.0, 1.0, (*self.batch_size, 2), **options)
        self._set_specs(4, action_spec, len(costs), dtype)
        self.set_seed(seed)

    @property
    def max_episode_steps(self) -> int:
        """Motions after which an episode is truncated."""
        return self.episode_length

    def to(self, device: torch.device | str) -> PointCircle:
        """Move the states and the dynamics. The random stream starts again from its seed."""
        seed = self._generator.initial_seed()
        super().to(device)
        self._generator = torch.Generator(device=self.device).manual_seed(seed)
        return self

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(checked_seed(seed))

    def state_error(self) -> None:
        """Return None: the state can always be saved."""

    def get_state(self) -> dict[str, Any]:
        """Return the positions, velocities, remaining motions and the random stream."""
        return {
            "state": self._state.clone(),
            "left": self._left.clone(),
            "generator": self._generator.get_state(),
            "calls": self._calls,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that another PointCircle of this size returned.

        Raises:
            StateError: if the number of copies differs.
        """
        if state["state"].shape != self._state.shape:
            raise StateError(f"the state is of {len(state['state'])} copies, not of {self.num_envs}")
        self._state = state["state"].to(self._state)
        self._left = state["left"].to(self._left)
        self._generator.set_state(state["generator"].cpu())
        self._calls = state["calls"]

    def _reset(self, tensordict: TensorDictBase | None = None, *, seed: int | None = None) -> TensorDictBase:
        if seed is not None:
            self._set_seed(seed)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        position = torch.rand(
            self.num_envs, 2, generator=self._generator, device=self.device, dtype=self._state.dtype
        )
        start = torch.cat([position.sub_(0.5).mul_(self.x_lim), torch.zeros_like(position)], -1)
        if mask is None:
            self._state, self._left = start, torch.full_like(self._left, self.episode_length)
        else:
            mask = mask.reshape(-1, 1)
            self._state = torch.where(mask, start, self._state)
            self._left = torch.where(mask, self.episode_length, self._left)
        if self.render_mode and (mask is None or bool(mask[0])):
            self._trail.clear()
            self._trail.append(tuple(self._state[0, :2].tolist()))
        return self._tensordict({})

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reset the copies that are done, on an accelerator without asking the device whether any is."""
        if self.device.type == "cpu":
            return super().maybe_reset(tensordict)
        return tensordict.update(self._reset(TensorDict({"_reset": tensordict["done"]}, self.batch_size)))

    def _reward_and_costs(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y, vx, vy = torch.split(state, 1, -1)
        distance = torch.hypot(x, y)
        # At the center the numerator is 0 as well. The smallest positive number turns 0 / 0 into 0.
        floor = torch.finfo(state.dtype).tiny
        reward = (x * vy - y * vx) / ((distance - self.radius).abs_().add_(1).mul_(distance)).clamp_min_(
            floor
        )
        parts = [
            x.abs() > self.x_lim if cost == "walls" else torch.hypot(vx, vy) > self.speed_limit
            for cost in self.costs
        ]
        cost = parts[0] if len(parts) == 1 else torch.cat([x[:, :0], *parts], -1)
        return reward.float(), cost.float()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get(keys.ACTION).detach().reshape(self.num_envs, 2).clamp(-1, 1)
        push = action @ self._push
        state = torch.addmm(push, self._state, self._drift)
        reward, cost = self._reward_and_costs(state)
        for _ in range(self.frame_skip - 1):
            state = torch.addmm(push, state, self._drift)
            more_reward, more_cost = self._reward_and_costs(state)
            reward, cost = reward + more_reward, cost + more_cost
        left = self._left - self.frame_skip
        mask = tensordict.get("_step", None)  # set by rollouts in which some copies have ended
        if mask is not None:
            mask = mask.reshape(-1, 1)
            state, left = torch.where(mask, state, self._state), torch.where(mask, left, self._left)
            reward, cost = reward * mask, cost * mask
        self._state, self._left = state, left
        self._check_finite()
        if self.render_mode:
            self._trail.append(tuple(self._state[0, :2].tolist()))
        return self._tensordict({"reward": reward, "cost": cost})

    def _check_finite(self) -> None:
        # The motion is bounded, so only an action can make a number that is not finite. Reading the
        # answer makes the host wait, so on an accelerator it is read once per episode length. A sum over
        # bounded numbers is finite exactly if all of them are.
        self._finite = self._finite & torch.isfinite(self._state.sum())
        self._calls += 1
        every = 1 if self.device.type == "cpu" else self.episode_length
        if self._calls % every == 0 and not bool(self._finite):
            self._finite = torch.ones_like(self._finite)
            rows = (~torch.isfinite(self._state).all(-1)).nonzero().flatten().tolist()
            where = f"of environment {rows[0]}" if rows else "of an environment reset since"
            raise FloatingPointError(
                f"PointCircle: action {where} is not finite, within the last {every} of {self._calls} steps"
            )

    def _tensordict(self, source: dict[str, torch.Tensor]) -> TensorDict:
        truncated = self._left <= 0
        source |= {
            keys.OBSERVATION: self._state.clone(),  # callers may change the returned tensor
            "truncated": truncated,
            "done": truncated.clone(),
            "terminated": torch.zeros_like(truncated),
        }
        if not self.batch_size:
            source = {key: value[0] for key, value in source.items()}
        return TensorDict(source, batch_size=self.batch_size, device=self.device)

    def render(self) -> np.ndarray:
        """Draw copy 0 from above, with its trail since its last reset (at most 60 steps).

        Returns:
            The image [320, 320, 3], uint8.

        Raises:
            RuntimeError: if the environment was made without ``render_mode="rgb_array"`` or not reset yet.
        """
        if not self._trail:
            raise RuntimeError("render() needs render_mode='rgb_array' at construction, and a reset")
        return draw_point_circle(self._trail, self.radius, self.x_lim)
