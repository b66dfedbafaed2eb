"""The environments of a run, and the sizes and bounds that its networks need."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Bounded, Composite, MultiOneHot, OneHot
from torchrl.envs import (
    Compose,
    EnvBase,
    ObservationNorm,
    RenameTransform,
    RewardSum,
    StepCounter,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)

from safe_components import keys
from safe_components.envs import SampledLimit, Saute, lives_on_device, make_env
from safe_components.ops import import_part
from safe_components.policies import Encoder, grid_actions, make_encoder
from safe_components.training.normalize import entries_norm, fit_norms, observation_norm, scale_steps
from safe_components.training.options import RecipeConfig, cost_suffixes

__all__ = ["Task"]

# Critics score every action of a set in every state of a batch.
_MOST_ACTIONS = 4096


class Task:
    """The environments that a configuration asks for.

    Construction also seeds the global generators of PyTorch, NumPy and Python, and sets the number of threads
    of PyTorch.

    Args:
        config: configuration of the run.

    Attributes:
        config: the configuration; without limits (``cost_limit`` is empty) its ``env.cost_keys`` are empty.
        device: device of the networks and the replay buffer.
        env_device: device of the environments in this process.
        observation_dim, action_dim, num_costs: sizes of an observation, an action and a vector of costs.
        limits: limits on the costs of an episode, one per cost.
        cost_suffixes: what names each cost at the end of a metric; see `cost_suffixes`.
        norm: TorchRL's ``ObservationNorm``, which is the identity until :meth:`warm_up` fits it; with an
            encoder one for each entry that is a vector, in a ``Compose``.
        observation_keys: entries that describe a state: those that the encoder reads, or ``observation``.
        observation_bytes: memory that one state takes in these entries.

    Raises:
        ValueError: if the number of limits differs from the number of costs, if the environment writes no
            vector that networks can read, or if the actions are neither numbers in a range nor one-hot.
    """

    def __init__(self, config: RecipeConfig) -> None:
        run, env = config.run, config.env
        torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        np.random.seed(run.seed % 2**32)  # NumPy takes 32 bits; some environments draw from these generators
        random.seed(run.seed)
        self.limits = config.budget.cost_limit
        if not self.limits:  # without a limit no cost is asked for, so any environment will do
            env = dataclasses.replace(env, cost_keys=())
            config = dataclasses.replace(config, env=env)
        self.config = config
        self.device = torch.device(run.device)
        encoder = getattr(config, "encoder", None)
        # Some environments simulate on the device of the learner. The others run on the CPU.
        alone = lives_on_device(env.id) and env.num_workers == 1
        device = self.device if alone else torch.device("cpu")
        self._settings = settings = env.arguments | {"device": device, "flatten": encoder is None}
        self._make: Callable[..., EnvBase] = functools.partial(make_env, settings.pop("id"))
        self._eval_env = self._make(**(settings | {"num_envs": run.eval_episodes, "num_workers": 1}))
        self.env_device: torch.device = self._eval_env.device
        if encoder is None:
            _check_observation(self._eval_env, env.id)
        elif env.saute is not None or env.limits:
            raise ValueError(
                f"encoder is {encoder}, but env.saute and env.limits show the budget in a vector of "
                "observations: leave one of them out"
            )
        written = self._eval_env.observation_spec.keys()
        collect = getattr(config, "collect", None)
        self._draws = bool(getattr(collect, "deterministic_share", 0.0))
        self._renames = encoder is not None and keys.OBSERVATION in written
        self._action_spec = self._eval_env.action_spec_unbatched
        if not isinstance(self._action_spec, Bounded | OneHot):  # MultiOneHot is a OneHot
            raise ValueError(
                f"{env.id} has actions of TorchRL's kind {type(self._action_spec).__name__}, which no recipe "
                "chooses: use Bounded, OneHot or MultiOneHot"
            )
        spec = self.with_inputs(self._eval_env).observation_spec_unbatched.to("cpu")
        self._encoder = None if encoder is None else functools.partial(_encoder, encoder, spec)
        if self._encoder is None:
            self.observation_dim: int = spec[keys.OBSERVATION].shape[-1]
            self.observation_keys: list[NestedKey] = [keys.OBSERVATION]
            self.norm: ObservationNorm | Compose = observation_norm(self.observation_dim)
        else:
            trial = self._encoder()
            self.observation_dim, self.observation_keys = trial.size, trial.in_keys
            self.norm = entries_norm(spec, trial.in_keys)
        self.norm = self.norm.to(self.env_device)
        sizes = (spec[key].shape.numel() * spec[key].dtype.itemsize for key in self.observation_keys)
        self.observation_bytes = sum(sizes)
        self.action_dim: int = self._action_spec.shape[-1]
        self.num_costs: int = self._eval_env.full_reward_spec_unbatched["cost"].shape[-1]
        self.cost_suffixes = cost_suffixes(env.cost_keys, self.num_costs)
        if len(self.limits) != self.num_costs:
            raise ValueError(
                f"cost_limit holds {len(self.limits)} limits, but {env.id} has {self.num_costs} costs"
                + ("" if self.num_costs else "; --cost-limit none trains without costs")
            )

    @property
    def bounds(self) -> dict[str, Any]:
        """The arguments ``action_low`` and ``action_high`` of policies and critics for continuous actions.

        Raises:
            ValueError: if the actions are discrete.
        """
        if not isinstance(self._action_spec, Bounded):
            raise ValueError(
                f"{self.config.recipe} needs continuous actions, but {self.config.env.id} has discrete ones: "
                "use discrete_cvpo"
            )
        space = self._action_spec.space
        return {"action_low": space.low.cpu(), "action_high": space.high.cpu()}

    def action_set(self, levels: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return all actions ``[K, a]``, and their bounds in the form of :attr:`bounds`.

        A Discrete space has one action for each alternative, and a MultiDiscrete space one for each
        combination. Over a continuous space the actions are a grid.

        Args:
            levels: number of values of each dimension of the grid.

        Raises:
            ValueError: unless there are between 2 and 4,096 actions.
        """
        spec, env_id = self._action_spec, self.config.env.id
        if isinstance(spec, Bounded):
            counts, said = [levels] * self.action_dim, f"{levels} levels in {self.action_dim} dimensions"
            remedy = "use fewer policy.levels, or a recipe for continuous actions such as cvpo"
        else:
            counts = [box.n for box in spec.space] if isinstance(spec, MultiOneHot) else [spec.space.n]
            said = "the product of " + " x ".join(map(str, counts))
            remedy = "let each decision choose fewer of the numbers, with gymnasium.wrappers.TransformAction"
        number = math.prod(counts)
        if number > _MOST_ACTIONS:
            raise ValueError(
                f"{env_id} has {number:,} actions ({said}), and at most {_MOST_ACTIONS:,} can all be scored: "
                + remedy
            )
        if number < 2:
            raise ValueError(f"{env_id} has a single action ({said}): there is nothing to choose")
        if isinstance(spec, Bounded):
            return grid_actions(**self.bounds, levels=levels), self.bounds
        actions: torch.Tensor = spec.enumerate().cpu()
        return actions, {
            "action_low": torch.zeros(self.action_dim),
            "action_high": torch.ones(self.action_dim),
        }

    @property
    def episode_length(self) -> int:
        """The number of decisions in an episode.

        Raises:
            ValueError: if the environment has no time limit.
        """
        env, steps = self.config.env, getattr(self._eval_env, "max_episode_steps", None)
        if steps is None:
            raise ValueError(f"{env.id} has no episode length: set --env.max-episode-steps")
        return int(steps) // env.steps_per_action

    def training_env(self, seed: int) -> EnvBase:
        """Make environments that scale observations, and sum reward, cost and steps over each episode."""
        transforms = [*self._inputs(self.env_device, training=True), self.norm]
        return _training_env(self._make, transforms, self._settings | {"seed": seed}, self._draws)

    def worker_env(self, workers: int) -> Callable[[], EnvBase]:
        """Return a function that makes one worker's share of these environments, on the CPU, unseeded."""
        share = {"num_envs": self.config.env.num_envs // workers, "device": "cpu"}
        transforms = [*self._inputs("cpu", training=True), self.norm.clone().cpu()]
        settings = self._settings | share
        return functools.partial(_training_env, self._make, transforms, settings, self._draws)

    def with_inputs(self, env: EnvBase) -> EnvBase:
        """Return an environment that shows the cost budget as ``env.saute`` or ``env.limits`` ask for.

        With an encoder, ``observation`` is renamed to ``raw_observation``.

        The reward is the environment's own. With ``env.limits``, each episode has the limits of the
        configuration.
        """
        inputs = self._inputs(env.device, training=False)
        return TransformedEnv(env, Compose(*inputs)) if inputs else env

    def _inputs(self, device: torch.device | str, *, training: bool) -> list[Transform]:
        env = self.config.env
        if self._renames:  # the features of the encoder take the name
            return [RenameTransform([keys.OBSERVATION], ["raw_observation"])]
        if env.saute is not None:
            return [Saute(self.limits, unsafe_reward=env.saute if training else None).to(device)]
        if env.limits:
            low, high = ([end] * len(self.limits) for end in env.limits)
            return [SampledLimit(low, high, limit=None if training else self.limits).to(device)]
        return []

    def warm_up(self, frames: int, seed: int, least_steps: int = 2) -> TensorDictBase:
        """Return random steps ``[N, T]``, fit :attr:`norm` to them, and scale them by it.

        A run with ``warm_start`` keeps the scaling of the run that it starts from.

        Args:
            frames: approximate number of frames.
            seed: seed of the environments.
            least_steps: smallest number of steps in each environment, even if ``frames`` asks for fewer.
        """
        env = self.training_env(seed)
        steps = frames // (self.config.env.num_envs * self.config.env.steps_per_action)
        random = env.rollout(max(steps, least_steps), break_when_any_done=False)
        env.close()
        if self.config.run.warm_start is None:  # its policy knows its own scaling
            fit_norms(self.norm, random)
        return scale_steps(self.norm, random)

    def evaluation_env(self, *, scaled: bool = True) -> EnvBase:
        """Return the environments for evaluation.

        Args:
            scaled: whether they scale observations by the current :attr:`norm`, as a policy in training
                expects. A policy from `load_policy` takes raw observations.
        """
        if not scaled:
            return self.with_inputs(self._eval_env)
        inputs = self._inputs(self.env_device, training=False)
        return TransformedEnv(self._eval_env, Compose(*inputs, self.norm.clone()))

    def make_encoder(self) -> Encoder | None:
        """Make the encoder that ``config.encoder`` names, on the device; None if the observation is a vector.

        Raises:
            ValueError: if there is no such function, or if its encoder does not fit the environment.
        """
        return None if self._encoder is None else self._encoder().to(self.device)


def _check_observation(env: EnvBase, env_id: str) -> None:
    spec = env.observation_spec_unbatched.get(keys.OBSERVATION, None)
    if spec is None or spec.ndim != 1 or not spec.dtype.is_floating_point:
        found = "no such entry" if spec is None else f"shape {list(spec.shape)}, {spec.dtype}"
        entries = ", ".join(map(str, env.observation_spec.keys(True, True)))
        raise ValueError(
            f"{env_id} must write {keys.OBSERVATION!r} as a vector of floating-point numbers, but there is "
            f"{found}; it writes {entries}. An encoder makes a vector of them: --encoder package.module:name "
            "(docs/observations.md)"
        )


def _encoder(path: str, spec: Composite) -> Encoder:
    return make_encoder(import_part(path, "encoder"), spec.clone(), f"the encoder {path!r}")


def _training_env(
    make: Callable[..., EnvBase], transforms: list[Transform], settings: dict[str, Any], draws: bool
) -> EnvBase:
    env = make(**settings)
    sums = RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])
    added: list[Transform] = [sums, StepCounter()]
    if draws:
        draw = {keys.EPISODE_DRAW: Bounded(0.0, 1.0, shape=(1,), device=env.device)}
        added.append(TensorDictPrimer(draw, random=True, expand_specs=True))
    return TransformedEnv(env, Compose(*added, *(each.clone() for each in transforms)))
