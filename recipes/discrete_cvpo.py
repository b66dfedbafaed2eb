"""CVPO over a finite set of actions, with an exact E-step.

    python recipes/discrete_cvpo.py --env.id CartPole-v1 --cost-limit none --env.frame-skip 1
    python recipes/discrete_cvpo.py --env.id PointCircle --env.frame-skip 1    # a grid over two dimensions
    python recipes/discrete_cvpo.py --env.id PointCircle --policy.levels 5     # a finer grid
    python recipes/discrete_cvpo.py --resume runs/discrete_cvpo-...

The actions are those of a Discrete space, all combinations of a MultiDiscrete one, or a grid over a
continuous one, whose dimensions each take one of a few levels. The E-step samples no actions. The critics
score all K actions, and the probabilities of the policy are the prior. The M-step minimizes a cross-entropy.
It has no trust region, because the KL ball of the E-step is around the current policy. Every metric is
defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential

from safe_components import keys
from safe_components.estep import EStepProjector
from safe_components.ops import aggregate
from safe_components.policies import encoded_policy, enumerated_policy
from safe_components.training import (
    Learner,
    Loop,
    Replay,
    Run,
    Task,
    anneal,
    launch,
    options,
    require_memory,
    value_units,
)


@dataclasses.dataclass(frozen=True)
class PolicyConfig(options.PolicyConfig):
    """The policy over all actions, and its optimizer."""

    levels: options.Repeats = 3
    """number of values of each continuous dimension, spaced evenly from its lower to its upper bound"""


@dataclasses.dataclass(frozen=True)
class EStepConfig:
    """The E-step, which weights all actions."""

    epsilon: options.Positive = 0.1
    """radius of the KL ball, in nats"""


@dataclasses.dataclass(frozen=True)
class Config(options.OffPolicyConfig):
    """Configuration of CVPO over a finite set of actions. Each group holds the settings of one part."""

    recipe: ClassVar[str] = "discrete_cvpo"
    policy: PolicyConfig = PolicyConfig()
    estep: EStepConfig = EStepConfig()
    multiplier: options.DualConfig = options.DualConfig()


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """Make a policy that chooses among all actions."""
    actions, bounds = task.action_set(config.policy.levels)
    sizes = config.policy.hidden_sizes
    policy = enumerated_policy(task.observation_dim, **bounds, actions=actions, hidden_sizes=sizes)
    return policy.to(task.device)


class DiscreteCVPO(Learner):
    """The parts of CVPO over a finite set of actions, and one update of them."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        critics, dual = config.critics, config.multiplier
        actions, bounds = task.action_set(config.policy.levels)
        self.actions = actions.to(task.device)
        self.policy = make_policy(config, task)
        self.aggregates = (critics.cost_aggregate, critics.cost_std)
        critic = critics.make(task.observation_dim, task.action_dim, task.num_costs, **bounds)
        critic, encoder = critic.to(task.device), task.make_encoder()
        self.critics = critics.make_learner(critic, self.policy, config.discount, encoder=encoder)
        self.budget = config.budget.make(config.discount, task.episode_length).to(task.device)
        solver = options.EStepConfig().make_solver(dual.lam_max, waits=True)
        self.estep = EStepProjector(config.estep.epsilon, self.budget.q_limit, solver, dual.infeasible)
        self.estep.to(task.device)
        self.optim = torch.optim.Adam([config.policy.group(self.policy.parameters())], fused=True)

    def update(self, transitions: TensorDictBase) -> dict[str, torch.Tensor]:
        """Take one step of the critics, one exact E-step, and one step of the policy toward the weights."""
        metrics = self.critics.update(transitions)
        states = self.critics.encode(transitions).select(keys.OBSERVATION)
        log_probs = self.policy.get_dist(states).logits
        with torch.no_grad():
            every = self.actions.expand(len(states), -1, -1)
            reward, cost = self.critics.critic(states[keys.OBSERVATION], every)
        states[keys.PARTICLE_Q_REWARD] = aggregate(reward, "min").squeeze(-1)
        states[keys.PARTICLE_Q_COST] = aggregate(cost, *self.aggregates)
        states[keys.PARTICLE_LOG_PRIOR] = log_probs.detach()
        weight = self.estep(states)[keys.PARTICLE_WEIGHT]
        fit = (weight * log_probs).sum(-1).mean()
        self.optim.zero_grad()
        (-fit).backward()
        self.optim.step()
        solution = self.estep.solution
        metrics |= {"eta": solution.eta, "lambda": solution.lam, "lambda_capped": solution.lam_clipped}
        metrics |= {"estep_cost": solution.expected_cost, "q_cost_limit": self.estep.cost_limits}
        metrics |= {
            "estep_kl": solution.kl,
            "estep_residual": solution.residual,
            "feasible": solution.feasible,
        }
        return metrics | {"entropy": -(log_probs.exp() * log_probs).sum(-1).detach().mean()}

    def observe(self, episode_costs: torch.Tensor, frames: int) -> None:
        """Move the limit between two batches of frames."""
        self.budget.observe(episode_costs, frames)
        self.estep.set_cost_limits(self.budget.q_limit)


def main(config: Config) -> DiscreteCVPO:
    """Train, and return the learner."""
    task = Task(config)
    require_memory(config, task, particles=len(task.action_set(config.policy.levels)[0]))
    learner, replay = DiscreteCVPO(config, task), Replay.of(config, observation_keys=task.observation_keys)
    policy = encoded_policy(learner.critics.encoder, learner.policy)
    with Run(config, learner=learner, policy=policy, norm=task.norm, replay=replay) as run:
        loop = Loop(run, task, policy, config.collect)
        if run.frames == 0:
            steps = loop.warm_up(config.critics.n_step + 1)
            replay.extend(steps)
            units = value_units(steps, task.limits, config.discount, task.episode_length)
            learner.critics.set_units(**units)
            for _ in range(config.critics.warmup_updates):
                learner.critics.update(replay.transitions())
        for steps in loop.collect():
            replay.extend(steps)
            learner.observe(loop.episode_costs, run.frames)
            anneal(learner.optim, run.progress)
            for _ in loop.updates_due():
                loop.record(learner.update(replay.transitions()))
            loop.report(shown=("lambda", "eta"))
    return learner


if __name__ == "__main__":
    launch(main, Config)
