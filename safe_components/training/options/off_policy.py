"""Options of off-policy recipes: collection, replay buffer and critics."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from safe_components.critics import COST_SIGNAL, REWARD_SIGNAL, ConstrainedQEnsemble, CriticLearner
from safe_components.envs.gpu_simulator import is_gpu_simulator
from safe_components.ops import Aggregate, import_part, is_import_path
from safe_components.training.options.policy import PolicyConfig
from safe_components.training.options.ranges import (
    Count,
    KeptShare,
    NotNegative,
    PositiveShare,
    Range,
    Repeats,
    Share,
    Sizes,
    Steps,
    StepSize,
    Whole,
    one_of_or_own,
)
from safe_components.training.options.run import EnvConfig, RecipeConfig

__all__ = [
    "CollectConfig",
    "CriticConfig",
    "OffPolicyCollectConfig",
    "OffPolicyConfig",
    "ReplayConfig",
]


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Collection of frames."""

    frames_per_batch: Steps = 1_000
    """frames collected with one policy"""
    warmup_frames: Steps = 5_000
    """initial frames with random actions; their statistics scale all observations"""

    def validate(self, config: RecipeConfig) -> None:
        """Raise ValueError unless a batch holds at least one step."""
        if self.frames_per_batch < config.env.steps_per_action:
            raise ValueError(
                f"collect.frames_per_batch is {self.frames_per_batch}, "
                f"must be at least env.frame_skip {config.env.steps_per_action}"
            )


@dataclasses.dataclass(frozen=True)
class OffPolicyCollectConfig(CollectConfig):
    """Collection of frames, and the number of updates after each batch."""

    updates_per_frame: Annotated[NotNegative, Range("at most 1000", lambda x: x <= 1000)] | None = None
    """updates of the learner per collected frame; None makes 0.4 per action, but at most 0.1 per frame"""
    workers: Whole = 0
    """processes that collect the next batch during the updates; 0 collects between updates in this process"""
    deterministic_share: Share = 0.0
    """share of the training episodes in which the policy acts without noise; above 0 the limits hold for
    these episodes, so for the deterministic policy, in place of all episodes"""

    def pace(self, env: EnvConfig) -> float:
        """Return the number of updates per frame of this environment."""
        if self.updates_per_frame is not None:
            return self.updates_per_frame
        return min(0.4 / env.steps_per_action, 0.1)

    def validate(self, config: RecipeConfig) -> None:
        """Raise ValueError unless a batch holds a step and the workers can share the environments."""
        super().validate(config)
        env = config.env
        if self.workers and env.num_envs % self.workers:
            raise ValueError(
                f"collect.workers is {self.workers}, must be 0 or divide env.num_envs {env.num_envs}"
            )
        if self.workers and env.num_workers > 1:
            raise ValueError(
                f"collect.workers is {self.workers} and env.num_workers is {env.num_workers}: both spread "
                "the environments over processes; leave env.num_workers at 1"
            )
        if self.workers and is_gpu_simulator(env.id):
            raise ValueError(
                f"collect.workers is {self.workers}, must be 0 for {env.id}, which steps all copies at once"
            )


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """The replay buffer."""

    size: Count = 300_000
    """frames whose transitions are kept; their memory is allocated at once and saved with each checkpoint"""
    batch_size: Count = 256
    """states per update"""


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critics of reward and costs, their targets and their optimizer."""

    gamma: PositiveShare = 0.99
    """discount of the reward and the costs per frame; an action held for k frames is discounted by gamma^k"""
    n_step: Repeats = 3
    """number of steps of the temporal-difference targets"""
    network: Annotated[str, one_of_or_own("mlp")] = "mlp"
    """networks of the critics: mlp, or package.module:name of your own, called like ConstrainedQEnsemble"""
    hidden_sizes: Sizes = (128, 128)
    """widths of the hidden layers"""
    layer_norm: bool = True
    """apply layer normalization to the hidden layers"""
    reward_members: Repeats = 2
    """ensemble size for the reward; the minimum over members is used"""
    cost_members: Repeats = 2
    """ensemble size for the costs"""
    cost_aggregate: Literal["mean", "max", "conservative"] = "mean"
    """estimate taken from the cost ensemble; conservative is mean + cost_std standard deviations"""
    cost_std: NotNegative = 0.5
    """number of standard deviations in conservative"""
    lr: StepSize = 1e-3
    """step size of Adam"""
    polyak: KeptShare = 0.98
    """share of their own parameters that the target critics keep at each update"""
    warmup_updates: Annotated[Whole, Range("at most 10,000,000", lambda n: n <= 10**7)] = 0
    """updates of the critics alone before the first update of the policy"""

    def validate(self, config: Any) -> None:
        """Raise ValueError unless critics of the user's own can be imported."""
        if is_import_path(self.network):
            import_part(self.network, "critics.network")

    def make(self, observation_dim: int, action_dim: int, num_costs: int, **options: Any) -> nn.Module:
        """Make the critics, and try critics of the user's own on two observations.

        Args:
            observation_dim: size of an observation.
            action_dim: size of an action.
            num_costs: number of cost signals.
            **options: further arguments of `ConstrainedQEnsemble`, such as the action bounds.

        Raises:
            ValueError: if critics of the user's own return other shapes.
        """
        own = is_import_path(self.network)
        build = import_part(self.network, "critics.network") if own else ConstrainedQEnsemble
        critic: nn.Module = build(
            observation_dim,
            action_dim,
            num_reward_members=self.reward_members,
            num_cost_members=self.cost_members,
            num_costs=num_costs,
            hidden_sizes=self.hidden_sizes,
            layer_norm=self.layer_norm,
            **options,
        )
        if own:
            self._require_shapes(critic, observation_dim, action_dim, num_costs)
        return critic

    def _require_shapes(self, critic: nn.Module, observation_dim: int, action_dim: int, costs: int) -> None:
        observation = torch.zeros(2, observation_dim)
        for particles in ((), (3,)):
            scores = critic(observation, torch.zeros(2, *particles, action_dim))
            shapes = [list(q.shape) for q in scores]
            if [shape[1:] for shape in shapes] != [[2, *particles, 1], [2, *particles, costs]]:
                wanted = ", ".join(str(part) for part in ("2", *particles))
                raise ValueError(
                    f"critics.network is {self.network!r}, whose critics must return a reward "
                    f"[E, {wanted}, 1] and costs [E, {wanted}, {costs}] for observations "
                    f"[2, {observation_dim}] and actions [{wanted}, {action_dim}], got shapes {shapes}"
                )

    def make_learner(
        self,
        critic: nn.Module,
        policy: nn.Module,
        gamma: float,
        cost_aggregate: Aggregate | None = None,
        **further: Any,
    ) -> CriticLearner:
        """Make the learner of the critics.

        Args:
            critic: critics from :meth:`make`.
            policy: policy that acts in the next state of the targets.
            gamma: discount of a decision, `OffPolicyConfig.discount`.
            cost_aggregate: aggregate of the cost's targets; None takes this group's ``cost_aggregate``.
            **further: further arguments of `CriticLearner`.
        """
        how = self.cost_aggregate if cost_aggregate is None else cost_aggregate
        cost = dataclasses.replace(COST_SIGNAL, aggregate=how, std_coef=self.cost_std)
        further |= {"gamma": gamma, "lr": self.lr, "polyak": self.polyak}
        return CriticLearner(critic, policy, (REWARD_SIGNAL, cost), **further)


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(RecipeConfig):
    """Options of every off-policy recipe; each recipe adds groups of its own."""

    follows_limits: ClassVar[bool] = False
    collect: OffPolicyCollectConfig = OffPolicyCollectConfig()
    replay: ReplayConfig = ReplayConfig()
    policy: PolicyConfig = PolicyConfig()
    critics: CriticConfig = CriticConfig()
    encoder: str | None = None
    """package.module:name of a function that makes the encoder of the observations, which the critics train
    (docs/observations.md); None for a vector of observations"""

    @property
    def discount(self) -> float:
        """The discount of a decision, which is an action that is held for ``env.frame_skip`` frames."""
        discount: float = self.critics.gamma**self.env.steps_per_action
        return discount
