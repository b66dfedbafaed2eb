"""The update of ``recipes/cvpo.py`` on random transitions, as a whole or with the time of each part."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from learner_gemm import CRITICS, M_STEP, PARTICLES, Sizes
from tensordict import TensorDict

from safe_components.training import Averages, Replay, execute, overlay

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import cvpo

E_STEP, SAMPLE, CHECKS, LOGGING = "E-step", "buffer samples", "checks", "logging"
PHASES = (PARTICLES, CRITICS, E_STEP, M_STEP, SAMPLE, CHECKS, LOGGING)
EPISODE = 500
# Action 0 earns reward and costs 1 where it is positive, half of the time under a centered policy. The limit
# allows 0.45 a step, so it binds and can be met, as in training. A short horizon, large steps and fast
# targets let the critics learn this in a few updates.
GAMMA, COST_LIMIT = 0.01, 0.45 * EPISODE
CRITIC_LR, CRITIC_POLYAK, CRITIC_UPDATES = 3e-3, 0.9, 100


@dataclasses.dataclass(frozen=True)
class RandomTask:
    """What the recipe's learner reads of a `Task`, without environments, and random steps in their place."""

    observation_dim: int
    action_dim: int
    device: torch.device
    num_costs: int = 1
    episode_length: int = EPISODE

    @property
    def bounds(self) -> dict[str, torch.Tensor]:
        """Bounds of the actions, as policies and critics take them."""
        high = torch.ones(self.action_dim)
        return {"action_low": -high, "action_high": high}

    def make_encoder(self) -> None:
        """Return None: the observations are vectors."""

    def steps(self, number: int) -> TensorDict:
        """Draw ``[1, number]`` steps; action 0 is rewarded, and costs 1 where it is positive."""
        generator = torch.Generator().manual_seed(0)

        def normal(size: int) -> torch.Tensor:
            return torch.randn(1, number, size, generator=generator)

        action = normal(self.action_dim).clamp(-1.0, 1.0)
        count = (torch.arange(number) % EPISODE + 1).view(1, number, 1)
        truncated = count == EPISODE
        following = {
            "observation": normal(self.observation_dim),
            "reward": 0.3 * action[..., :1] + 0.1 * normal(1),
            "cost": (action[..., :1] > 0).float(),
            "terminated": torch.zeros_like(truncated),
            "truncated": truncated,
            "done": truncated.clone(),
            "step_count": count,
        }
        steps = {"observation": normal(self.observation_dim), "action": action, "next": following}
        return TensorDict(steps, batch_size=[1, number]).auto_batch_size_()


def make_config(sizes: Sizes, transitions: int, *settings: Mapping[str, Any]) -> cvpo.Config:
    """Make the recipe's configuration for these sizes, with further settings as a YAML file nests them."""
    hidden = {"hidden_sizes": sizes.hidden_sizes}
    members = {"reward_members": sizes.reward_critics, "cost_members": sizes.cost_critics}
    learning = {"gamma": GAMMA, "lr": CRITIC_LR, "polyak": CRITIC_POLYAK}
    own = {
        "env": {"frame_skip": 1},
        "budget": {"cost_limit": COST_LIMIT},
        "replay": {"size": transitions, "window": transitions, "batch_size": sizes.states},
        "critics": hidden | members | learning,
        "estep": {"num_particles": sizes.particles},
        # As published: a Gaussian, an exact dual, and a reference policy that moves with every update.
        "policy": {"gaussian": hidden | {"covariance": "full"}},
        "multiplier": "dual",
        "mstep": {"iterations": sizes.m_iterations, "likelihood": "decoupled"},
        "reference": "polyak",
    }
    return functools.reduce(
        lambda to, plain: overlay(to, plain, "benchmark"), (own, *settings), cvpo.Config()
    )


class CVPOUpdate:
    """The recipe's learner on a full buffer of random transitions; a call samples from it and updates once.

    The critics are trained for a moment, so that the E-step's problem is an ordinary one.

    Args:
        sizes: sizes of networks and batches.
        settings: further settings of the recipe, nested; later mappings win.
        transitions: number of transitions in the buffer.

    Attributes:
        config: the recipe's configuration.
        learner: the recipe's `CVPO`.
        replay: the buffer.
        run: ``learner.update`` as ``execution.mode`` runs it.
    """

    def __init__(self, sizes: Sizes, *settings: Mapping[str, Any], transitions: int = 100_000) -> None:
        self.config = make_config(sizes, transitions, *settings)
        torch.manual_seed(self.config.run.seed)
        task = RandomTask(sizes.observation, sizes.actions, torch.device(self.config.run.device))
        self.learner = cvpo.CVPO(self.config, task)
        self.run = execute(self.config.execution, self.learner, task.device)
        self.replay = Replay.of(self.config, window=self.config.replay.window)
        self.replay.extend(task.steps(transitions))
        for _ in range(CRITIC_UPDATES):
            self.learner.critics.update(self.replay.transitions())

    def __call__(self) -> dict[str, torch.Tensor]:
        """Update once; return the metrics."""
        return self.run(*self.replay.sample())


class TimedUpdate(CVPOUpdate):
    """The eager update, with a stopwatch that the learner's particles and E-step read through hooks.

    Each phase lasts until the next one begins, so the phases hold the whole update. What the learner does
    before the particles counts as critics, and what it does after the E-step counts as M-step.

    Args:
        sizes: as `CVPOUpdate`.
        settings: as `CVPOUpdate`.
        transitions: as `CVPOUpdate`.
        clock: returns seconds.
    """

    def __init__(
        self,
        sizes: Sizes,
        *settings: Mapping[str, Any],
        transitions: int = 100_000,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(sizes, *settings, transitions=transitions)
        self.clock, self._averages = clock, Averages()
        self._since, self._seconds = clock(), dict.fromkeys(PHASES, 0.0)
        particles, estep = self.learner.particles, self.learner.estep
        particles.register_forward_pre_hook(functools.partial(self._end, CRITICS))
        particles.register_forward_hook(functools.partial(self._end, PARTICLES))
        estep.register_forward_pre_hook(functools.partial(self._end, CHECKS))
        estep.register_forward_hook(functools.partial(self._end, E_STEP))

    def timed(self, number: int) -> list[dict[str, float]]:
        """Update so many times, adding the metrics to the averages; seconds by phase of each update."""
        rows = []
        for _ in range(number):
            self._since, self._seconds = self.clock(), dict.fromkeys(PHASES, 0.0)
            batches = self.replay.sample()
            self._end(SAMPLE)
            metrics = self.run(*batches)
            self._end(M_STEP)
            self._averages.add(metrics)
            self._end(LOGGING)
            rows.append(self._seconds)
        return rows

    def metrics(self) -> dict[str, float]:
        """Means of the recipe's metrics over the timed updates since the last call."""
        return self._averages.pop()

    def _end(self, phase: str, *_: object) -> None:
        now = self.clock()
        self._seconds[phase] += now - self._since
        self._since = now
