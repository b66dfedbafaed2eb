"""The environments of a run, and what networks and limits need to know about them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, EnvBase, ObservationNorm, RewardSum, TransformedEnv

from safe_components import keys
from safe_components.envs import make_env
from safe_components.training import RunConfig, fit_observation_norm, observation_norm, scale_steps

__all__ = ["Task"]


class Task:
    """Make the environments a run's configuration asks for; set PyTorch's seed and threads first.

    Args:
        config: of the run.

    Attributes:
        device: of the networks and the buffer.
        env_device: of the environments in this process.
        observation_dim, action_dim, num_costs: sizes of observation, action and cost vectors.
        bounds: ``action_low`` and ``action_high``, as policies and critics take them.
        norm: TorchRL's ``ObservationNorm``, the identity until warm-up has fitted it.

    Raises:
        ValueError: if the limits are not as many as the environment's costs.
    """

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = torch.device(config.device)
        # PointCircle is made of tensors and lives where the learner does; simulators run on the CPU.
        alone = config.env.id == "PointCircle" and config.env.num_workers == 1
        self.env_device = self.device if alone else torch.device("cpu")
        settings = dataclasses.asdict(config.env) | {"device": self.env_device}
        self._make = functools.partial(make_env, settings.pop("id"))
        self._settings = settings
        self._eval_env = self._make(**(settings | {"num_envs": config.eval_episodes or 1, "num_workers": 1}))
        action_space = self._eval_env.action_spec_unbatched.space
        self.observation_dim = self._eval_env.observation_spec[keys.OBSERVATION].shape[-1]
        self.action_dim = action_space.low.shape[-1]
        self.num_costs = self._eval_env.full_reward_spec_unbatched["cost"].shape[-1]
        self.bounds = {"action_low": action_space.low.cpu(), "action_high": action_space.high.cpu()}
        self.norm = observation_norm(self.observation_dim).to(self.env_device)
        if len(config.cost_limit) != self.num_costs:
            raise ValueError(
                f"cost_limit holds {len(config.cost_limit)} limits, "
                f"{config.env.id} has {self.num_costs} costs"
            )

    @property
    def episode_length(self) -> int:
        """Decisions in an episode.

        Raises:
            ValueError: if the environment has no time limit.
        """
        if self._eval_env.max_episode_steps is None:
            raise ValueError(f"{self.config.env.id} has no episode length: set --env.max-episode-steps")
        return self._eval_env.max_episode_steps // self.config.env.frame_skip

    def training_env(self, seed: int) -> EnvBase:
        """Fresh environments that scale observations and sum reward and cost over each episode."""
        return _training_env(self._make, self.norm, self._settings | {"seed": seed})

    def worker_env(self, workers: int) -> Callable[[], EnvBase]:
        """What makes one worker's share of these environments in its process, on the CPU, unseeded."""
        share = {"num_envs": self.config.env.num_envs // workers, "device": "cpu"}
        return functools.partial(_training_env, self._make, self.norm.clone().cpu(), self._settings | share)

    def warm_up(self, frames: int, seed: int) -> TensorDictBase:
        """About ``frames`` random steps ``[N, T]``, scaled by :attr:`norm`, which is fitted to them."""
        env = self.training_env(seed)
        steps = frames // (self.config.env.num_envs * self.config.env.frame_skip)
        random = env.rollout(max(steps, 2), break_when_any_done=False)
        env.close()
        fit_observation_norm(self.norm, random[keys.OBSERVATION])
        return scale_steps(self.norm, random)

    def evaluation_env(self) -> EnvBase:
        """The environments kept apart for evaluation, observations scaled as they are now."""
        return TransformedEnv(self._eval_env, self.norm.clone())


def _training_env(make: Callable[..., EnvBase], norm: ObservationNorm, settings: dict[str, Any]) -> EnvBase:
    sums = RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])
    return TransformedEnv(make(**settings), Compose(sums, norm.clone()))
