"""Constrained Variational Policy Optimization (Liu et al., ICML 2022, arXiv 2201.11927).

    python recipes/cvpo.py                                    # SafetyPointCircle1-v0, limit 25
    python recipes/cvpo.py --env.id SafetyPointGoal1-v0 --cost-limit 25 --seed 1
    python recipes/cvpo.py --trust-region none                # an ablation: docs/ablations.md
    python recipes/cvpo.py --policy gaussian                  # without the squashing: docs/mstep.md
    python recipes/cvpo.py --resume runs/cvpo-...             # continue from the last checkpoint

CVPO alternates an E-step and an M-step. The E-step finds the best weights over sampled actions within a KL
ball and the cost limits. The M-step fits the policy to the weighted actions within a trust region. Every
metric is defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential

from safe_components import keys
from safe_components.estep import (
    DualSolver,
    EStepProjector,
    GivenMultiplierSolver,
    Infeasible,
    ParticleSampler,
)
from safe_components.mstep import mstep_loss
from safe_components.policies import encoded_policy
from safe_components.training import (
    CostControl,
    Diagnosis,
    Learner,
    Loop,
    Replay,
    Run,
    Task,
    Training,
    anneal,
    launch,
    options,
    require_memory,
    run_alone,
    value_units,
)
from safe_components.training.execution import ExecutionConfig
from safe_components.training.guards import require_finite


@dataclasses.dataclass(frozen=True)
class ReplayConfig(options.ReplayConfig):
    """The replay buffer, and the states of the E-step and the M-step."""

    window: options.Count = 100_000
    """latest frames whose states improve the policy; a smaller window reacts faster but oscillates"""


@dataclasses.dataclass(frozen=True)
class Config(options.OffPolicyConfig):
    """Configuration of CVPO. Each group holds the settings of one part, which can be replaced on its own."""

    recipe: ClassVar[str] = "cvpo"
    budget: options.FeedbackBudgetConfig = options.FeedbackBudgetConfig()
    replay: ReplayConfig = ReplayConfig()
    policy: options.Policy = options.TanhConfig()
    estep: options.EStepConfig = options.EStepConfig()
    multiplier: options.Multiplier | options.DualConfig | None = options.PriceConfig()
    mstep: options.MStepConfig = options.MStepConfig()
    trust_region: options.TrustRegion = options.HardConfig()
    reference: options.Reference = options.CopyConfig()
    execution: ExecutionConfig = ExecutionConfig()


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """Make the policy: a Gaussian that is squashed into the action bounds, or another that is chosen."""
    return config.policy.make(task.observation_dim, **task.bounds).to(task.device)


class CVPO(Learner):
    """The parts of CVPO, and one update of them; its ``state_dict`` is the checkpoint."""

    entropy_coef: torch.Tensor

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__()
        critics, estep, device = config.critics, config.estep, task.device
        self.waits, self.iterations = config.execution.waits, config.mstep.iterations

        # The M-step holds the reference policy. The learner of the critics holds the target critics.
        self.policy = make_policy(config, task)
        region = config.trust_region.make()
        likelihood = config.mstep.likelihood
        mstep = mstep_loss(self.policy, region, likelihood=likelihood, check_weights=self.waits)
        self.mstep = mstep.to(device)
        self.retraction = config.trust_region.make_retraction(self.mstep)
        self.reference, self.follows = config.reference.make(self.mstep), config.reference.each_update
        reference = self.mstep.target_policy_params

        precision = getattr(torch, config.execution.scoring_precision)
        # Until the units are known, the temperature is in units of the reward's value.
        temperature = estep.temperature(config.policy)
        self.register_buffer("entropy_coef", torch.tensor(temperature, device=device))
        soft: dict[str, Any] = {"entropy_coef": self.entropy_coef} if temperature else {}
        sizes = (task.observation_dim, task.action_dim, task.num_costs)
        critic = critics.make(*sizes, scoring_dtype=precision, **task.bounds).to(device)
        self.critics = critics.make_learner(
            critic,
            self.policy,
            config.discount,
            policy_params=reference,
            encoder=task.make_encoder(),
            **soft,
        )
        self.particles = ParticleSampler(
            self.policy,
            critic,
            estep.num_particles,
            policy_params=reference,
            critic_params=self.critics.target_params if estep.critics == "target" else self.critics.params,
            cost_aggregate=critics.cost_aggregate,
            std_coef=critics.cost_std,
            antithetic=estep.antithetic,
            **soft,
        )

        # Limits are on sums over an episode, whereas critics estimate discounted sums: docs/cost_budget.md.
        tighten = config.budget.make_feedback()
        self.budget = config.budget.make(config.discount, task.episode_length, tighten)
        self.control: CostControl | None = None
        price = config.multiplier
        solver: DualSolver | GivenMultiplierSolver
        infeasible: Infeasible = "recover"
        if isinstance(price, options.DualConfig):
            solver, infeasible = estep.make_solver(price.lam_max, self.waits), price.infeasible
        else:
            exact = estep.make_solver(None, self.waits)
            if price is None:
                solver = GivenMultiplierSolver(lambda: torch.zeros_like(self.budget.q_limit), exact)
            else:
                self.control = CostControl(price, config, task, config.collect.frames_per_batch).to(device)
                solver = GivenMultiplierSolver(self.control, exact, in_spreads=self.control.in_spreads)
        self.estep = EStepProjector(
            estep.epsilon, self.budget.q_limit, solver, infeasible, check_finite=False
        ).to(device)
        self.budget.to(device)

        fitted = config.policy.group(self.mstep.policy_params.parameters())
        bounds = {"params": list(region.parameters()), "lr": getattr(config.trust_region, "lr", 0.0)}
        self.optim = torch.optim.Adam([fitted, bounds], fused=True)

    def set_units(self, reward: torch.Tensor, **costs: torch.Tensor) -> None:
        """Set the units of the critics and of the temperature, before any update."""
        self.critics.set_units(reward=reward, **costs)
        self.entropy_coef.mul_(reward.squeeze(0))

    def update(self, transitions: TensorDictBase, states: TensorDictBase) -> dict[str, torch.Tensor]:
        """Take one step of the critics, then improve the policy."""
        return self.critics.update(transitions) | self.improve(self.critics.encode(states))

    def improve(self, states: TensorDictBase) -> dict[str, torch.Tensor]:
        """Take one E-step, and the gradient steps of the M-step."""
        states = self.particles(states)
        if self.waits:
            require_finite(states.select(keys.PARTICLE_Q_REWARD, keys.PARTICLE_Q_COST), "an update")
        self.estep(states)
        particles = self.mstep.prepare(states)
        metrics: dict[str, torch.Tensor] = {}
        for _ in range(self.iterations):
            fit = self.mstep(particles)
            self.optim.zero_grad()
            (fit["loss_policy"] + fit["loss_trust_region"]).sum().backward()  # scalars, or one per member
            self.optim.step()
            if self.retraction is not None:
                metrics["retracted"] = self.retraction.step(*(fit[name] for name in self.mstep.divergences))
        if self.follows:
            self.reference.step()

        dual = self.estep.solution
        metrics |= {"eta": dual.eta, "lambda": dual.lam, "lambda_capped": dual.lam_clipped}
        metrics |= {"estep_cost": dual.expected_cost, "q_cost_limit": self.estep.cost_limits}
        metrics |= {"estep_kl": dual.kl, "estep_residual": dual.residual, "feasible": dual.feasible}
        if self.control is not None:
            metrics |= self.control.metrics()
        of_fit = (*self.mstep.divergences, "alpha", "alpha_mean", "alpha_cov", "entropy")
        return metrics | {name: value for name, value in fit.items() if name in of_fit}

    def observe(self, steps: TensorDictBase, episode_costs: torch.Tensor, frames: int) -> None:
        """Move the limit, the multiplier and the reference policy between two batches of frames."""
        self.budget.observe(episode_costs, frames)
        self.estep.set_cost_limits(self.budget.q_limit)
        if self.control is not None:
            self.control.observe(self.budget.cost_limit, steps, episode_costs)
        if not self.follows:
            self.reference.step()


def train(config: Config) -> Training[CVPO]:
    """Train: yield the learner, then the batches of each update, whose metrics come back."""
    task = Task(config)
    require_memory(config, task, particles=config.estep.num_particles, window=config.replay.window)
    learner = CVPO(config, task)
    yield learner
    replay = Replay.of(config, config.replay.window, task.observation_keys)
    policy = encoded_policy(learner.critics.encoder, learner.policy)
    with Run(config, learner=learner, policy=policy, norm=task.norm, replay=replay) as run:
        loop = Loop(run, task, policy, config.collect)
        if run.frames == 0:
            steps = loop.warm_up(config.critics.n_step + 1)
            replay.extend(steps)
            units = value_units(steps, task.limits, config.discount, task.episode_length)
            learner.set_units(**units)
            for _ in range(config.critics.warmup_updates):
                learner.critics.update(replay.transitions())
        diagnosis = Diagnosis(learner.policy, learner.particles, learner.estep, gamma=config.discount)
        run.add("diagnosis", diagnosis)
        for steps in loop.collect():
            replay.extend(steps)
            learner.observe(steps, loop.episode_costs, run.frames)
            anneal(learner.optim, run.progress)
            loop.record(diagnosis.before(learner.critics.encode(steps)))
            for _ in loop.updates_due():
                loop.record((yield replay.sample()))
            loop.record(diagnosis.after())
            loop.report(shown=("lambda", "eta", *learner.mstep.divergences[:1]))


def main(config: Config) -> CVPO:
    """Train, and return the learner."""
    return run_alone(train(config), config.execution)


if __name__ == "__main__":
    launch(main, Config)
