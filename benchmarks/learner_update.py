"""The update of ``recipes/cvpo.py`` itself, on random transitions, with a stop-watch at each of its parts."""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import torch
from learner_gemm import CRITICS, M_STEP, PARTICLES, Sizes
from tensordict import TensorDict
from torchrl.data import TensorDictReplayBuffer

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import cvpo
from plumbing import ConstrainedCritics
from safe_components.estep import EStepProjector, ParticleSampler
from safe_components.training import Averages, EnvConfig

E_STEP, SAMPLE, CHECKS, LOGGING = "E-step", "buffer samples", "checks", "logging"
PHASES = (PARTICLES, CRITICS, E_STEP, M_STEP, SAMPLE, CHECKS, LOGGING)
EPISODE = 500
# Action 0 earns reward and costs 1 where it is positive, half of the time under a centred policy; 0.45 a step
# is allowed. So the limit binds and can be met, as in training; and with next to no future to look into,
# large steps and fast targets, the critics know it after a few updates.
GAMMA, COST_LIMIT = 0.01, 0.45 * EPISODE
CRITIC_LR, CRITIC_POLYAK, CRITIC_UPDATES = 3e-3, 0.9, 100
# Where a part of the update is entered: what is timed, and the phase it counts to.
_ENTRANCES: tuple[tuple[Any, str, str], ...] = (
    (ParticleSampler, "forward", PARTICLES),
    (ConstrainedCritics, "update", CRITICS),
    (EStepProjector, "forward", E_STEP),
    (TensorDictReplayBuffer, "sample", SAMPLE),
    (cvpo, "require_finite", CHECKS),
)


class SpacesOnly(gymnasium.Env):
    """A task of given sizes; nobody acts in it, the buffer is filled with random numbers."""

    def __init__(self, observation: int, actions: int) -> None:
        self._zeros = np.zeros(observation, np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (actions,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start at zero."""
        super().reset(seed=seed)
        return self._zeros, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Stay there."""
        return self._zeros, 0.0, False, False, {"cost": 0.0}


def random_steps(number: int, observation: int, actions: int) -> TensorDict:
    """``number`` transitions, episodes of `EPISODE` steps; action 0 is rewarded, and costs where positive."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(number, *shape, generator=generator)

    action = normal(actions).clamp(-1.0, 1.0)
    truncated = (torch.arange(number) % EPISODE == EPISODE - 1).unsqueeze(-1)
    following = {
        "observation": normal(observation),
        "reward": 0.3 * action[:, :1] + 0.1 * normal(1),
        "cost": (action[:, :1] > 0).float(),
        "terminated": torch.zeros_like(truncated),
        "truncated": truncated,
        "done": truncated.clone(),
    }
    steps = {"observation": normal(observation), "action": action, "next": following}
    return TensorDict(steps, batch_size=[number]).auto_batch_size_()


class Learner:
    """The recipe's learner: its ``main`` runs up to the training loop, which is left out.

    The critics are trained for a moment, so that the E-step's problem is an ordinary one.

    Args:
        sizes: of networks and batches.
        transitions: random ones, that fill the buffer.
        clock: seconds, for the phases and the whole.
        settings: of the recipe, beyond the sizes.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        transitions: int = 100_000,
        clock: Callable[[], float] = time.perf_counter,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        task = f"SpacesOnly{sizes.observation}x{sizes.actions}-v0"
        if task not in gymnasium.registry:
            entry = functools.partial(SpacesOnly, sizes.observation, sizes.actions)
            gymnasium.register(task, entry, max_episode_steps=EPISODE)
        with tempfile.TemporaryDirectory() as directory:
            self.config = cvpo.Config(
                env=EnvConfig(id=task, num_envs=1, frame_skip=1),
                batch_size=sizes.states,
                num_particles=sizes.particles,
                m_iterations=sizes.m_iterations,
                hidden_sizes=sizes.hidden_sizes,
                reward_critics=sizes.reward_critics,
                cost_critics=sizes.cost_critics,
                buffer_size=transitions,
                estep_window=transitions,
                gamma=GAMMA,
                critic_lr=CRITIC_LR,
                critic_polyak=CRITIC_POLYAK,
                cost_limit=(COST_LIMIT,),
                eval_episodes=1,
                threads=torch.get_num_threads(),
                run_dir=Path(directory) / "run",
                loggers=(),
                progress=False,
                **(settings or {}),
            )
            parts: dict[str, Callable[..., Any]] = {}
            # The recipe's loop gets everything it needs as arguments: here it only hands them out.
            loop = mock.patch.object(cvpo, "train_off_policy", lambda *_, **given: parts.update(given))
            unsaved = mock.patch.object(cvpo.Run, "save")
            with loop, unsaved:
                cvpo.main(self.config)
        self._update = parts["update"]
        parts["store"](random_steps(transitions, sizes.observation, sizes.actions).unsqueeze(0))
        for _ in range(CRITIC_UPDATES):
            parts["warm_up"]()
        self._averages, self._clock = Averages(), clock

    def update(self) -> dict[str, torch.Tensor]:
        """One update; its metrics."""
        return self._update()

    def timed_updates(self, number: int) -> list[dict[str, float]]:
        """Seconds by phase of so many updates, each with its metrics added to the averages.

        Parts without an entrance of their own (the steps of the policy, mostly) count as M-step.
        """
        rows = []
        for _ in range(number):
            seconds = dict.fromkeys(PHASES, 0.0)
            with _stopwatches(seconds, self._clock):
                entered = self._clock()
                values = self._update()
                left = self._clock()
            self._averages.add(values)
            seconds[LOGGING] = self._clock() - left
            seconds[M_STEP] += left - entered - sum(seconds[p] for p in PHASES if p != LOGGING)
            rows.append(seconds)
        return rows

    def metrics(self) -> dict[str, float]:
        """Means of the recipe's metrics over the timed updates since the last call."""
        return self._averages.pop()


@contextlib.contextmanager
def _stopwatches(seconds: dict[str, float], clock: Callable[[], float]) -> Iterator[None]:
    """Add the time spent in each part to ``seconds``."""

    def timed(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[phase] += clock() - start

        return call

    with contextlib.ExitStack() as patches:
        for owner, name, phase in _ENTRANCES:
            patches.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), phase)))
        yield
