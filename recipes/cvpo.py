"""Constrained Variational Policy Optimization (Liu et al., ICML 2022, arXiv 2201.11927).

    python recipes/cvpo.py                                    # SafetyPointCircle1-v0, limit 25
    python recipes/cvpo.py --env.id SafetyPointGoal1-v0 --cost-limit 25 --seed 1
    python recipes/cvpo.py --trust-region none                # an ablation: docs/ablations.md
    python recipes/cvpo.py --resume runs/cvpo-...             # go on from the last checkpoint

Alternate an E-step, which finds the best weights over sampled actions within a KL ball and the
cost limits, and an M-step, which fits the policy to them within a trust region. Metrics: docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential

from plumbing import (
    ConstrainedCritics,
    Copy,
    ExecutionConfig,
    LagrangianConfig,
    LimitScheduleConfig,
    OffPolicyConfig,
    Polyak,
    Task,
    execute,
    limit_at,
    make_buffer,
    make_multiplier,
    n_step_transitions,
    require_memory,
    train_off_policy,
)
from safe_components import keys
from safe_components.estep import (
    AdamDualSolver,
    EStepProjector,
    GivenMultiplierSolver,
    NewtonDualSolver,
    ParticleSampler,
    SLSQPDualSolver,
)
from safe_components.mstep import HardTrustRegion, MStepLoss, NoTrustRegion, Retraction, SoftTrustRegion
from safe_components.ops import q_cost_limit
from safe_components.policies import gaussian_policy
from safe_components.training import Run, launch, require_finite


@dataclasses.dataclass(frozen=True)
class Config(ExecutionConfig, LagrangianConfig, LimitScheduleConfig, OffPolicyConfig):
    """CVPO. Each choice below is one part of the algorithm, and can be replaced on its own."""

    covariance: Literal["full", "diagonal"] = "full"
    """of the Gaussian policy"""
    min_std: float = 0.01
    """floor of its standard deviation, as a share of half the action range"""
    reward_critics: int = 2
    """ensemble size; the minimum is used"""
    cost_aggregate: Literal["mean", "max", "conservative"] = "mean"
    """how the cost ensemble becomes one number; conservative is mean + 0.5 standard deviations"""
    estep_critics: Literal["target", "online"] = "target"
    """critics that score the particles"""
    estep_window: int = 30_000
    """the policy is improved at states of the last so many frames: fewer react faster, and oscillate"""
    estep_solver: Literal["newton", "slsqp", "adam"] = "newton"
    """of the E-step's dual: exact; SciPy's SLSQP as published; one Adam step per batch"""
    num_particles: int = 16
    """K, actions sampled per state in the E-step"""
    antithetic: bool = False
    """draw them in pairs mirrored at the mean"""
    epsilon: float = 0.1
    """KL ball of the E-step, in nats"""
    multiplier: Literal["dual", "feedback", "gradient", "pid", "none"] = "dual"
    """lambda: the E-step's own; the same, with limits tightened while episodes cost more than they should;
    moved by the episodes just collected; or 0 (no constraint: MPO)"""
    infeasible: Literal["recover", "clip"] = "clip"
    """where no distribution in the ball meets the limit: lower the cost only, or keep lambda at its cap"""
    lambda_max: float = 1.0
    """that cap, in reward per cost; must be well above what keeping the limit is worth"""
    reference: Literal["polyak", "copy"] = "polyak"
    """how the reference policy follows: a little each update, or whole after each batch of frames"""
    policy_polyak: float = 0.995
    """polyak: share the reference policy keeps at each update"""
    trust_region: Literal["hard", "retract", "soft", "none"] = "hard"
    """of the M-step: bounds by multipliers, bounds by shortening steps, fixed penalties, or nothing"""
    kl_mean: float = 0.05
    """hard, retract: bound for the mean, in nats"""
    kl_cov: float = 0.01
    """hard, retract: bound for the covariance, in nats"""
    alpha_lr: float = 1e-2
    """hard: Adam's step size for the multipliers of these bounds"""
    soft_mean: float = 1.0
    """soft: penalty for the mean, per nat"""
    soft_cov: float = 10.0
    """soft: penalty for the covariance, per nat"""
    m_iterations: int = 4
    """policy steps per E-step"""


def make_policy(config: Config, task: Task) -> ProbabilisticTensorDictSequential:
    """A Gaussian whose mean stays inside the action bounds."""
    shape = {"hidden_sizes": config.hidden_sizes, "covariance": config.covariance, "min_std": config.min_std}
    return gaussian_policy(task.observation_dim, **task.bounds, **shape).to(task.device)


def main(config: Config) -> None:
    """Train."""
    if config.m_iterations < 1:
        raise ValueError(f"m_iterations is {config.m_iterations}, must be at least 1")
    task = Task(config)
    require_memory(config, task, config.reward_critics, config.num_particles, config.estep_window)

    # The M-step holds the reference policy, the TD losses the target critics.
    policy = make_policy(config, task)
    bounds = (config.kl_mean, config.kl_cov)
    trust_region = {
        "hard": lambda: HardTrustRegion(*bounds),
        "retract": NoTrustRegion,
        "soft": lambda: SoftTrustRegion(config.soft_mean, config.soft_cov),
        "none": NoTrustRegion,
    }[config.trust_region]()
    mstep = MStepLoss(policy, trust_region=trust_region, check_weights=config.waits).to(task.device)
    retraction = Retraction(mstep, *bounds) if config.trust_region == "retract" else None
    polyak = config.reference == "polyak"
    reference = Polyak(mstep, eps=config.policy_polyak) if polyak else Copy(mstep)
    critics = ConstrainedCritics(
        config,
        task,
        policy,
        reward_critics=config.reward_critics,
        cost_aggregate=config.cost_aggregate,
        policy_params=mstep.target_policy_params,
        scoring_dtype=getattr(torch, config.scoring_precision),
    )
    particles = ParticleSampler(
        policy,
        critics.critic,
        None,
        config.num_particles,
        policy_params=mstep.target_policy_params,
        reward_params=critics.td.target_critic_params if config.estep_critics == "target" else None,
        split=critics.critic.split,
        cost_aggregate=config.cost_aggregate,
        antithetic=config.antithetic,
    )

    # Limits are set on sums over an episode, critics estimate discounted sums: docs/cost_budget.md.
    limits = q_cost_limit(limit_at(config, 0), config.gamma, task.episode_length)
    lam_max = config.lambda_max if config.infeasible == "clip" else None
    solver = {
        "newton": lambda: NewtonDualSolver(lam_max=lam_max, fixed_iterations=config.newton_iterations),
        "slsqp": lambda: SLSQPDualSolver.published(lam_max=lam_max),
        "adam": lambda: AdamDualSolver(steps=1, lr=0.03, lam_max=lam_max),
    }[config.estep_solver]()
    multiplier = make_multiplier(config).to(task.device)
    if config.multiplier == "none":
        solver = GivenMultiplierSolver(lambda: torch.zeros_like(multiplier.lam), solver)
    elif config.multiplier not in ("dual", "feedback"):
        solver = GivenMultiplierSolver(multiplier, solver)
    options = {"infeasible": config.infeasible, "check_finite": False}  # checked below, with the update
    estep = EStepProjector(config.epsilon, limits, solver, **options).to(task.device)

    fitted = {"params": list(mstep.policy_params.parameters()), "lr": config.policy_lr}
    bounding = {"params": list(mstep.trust_region.parameters()), "lr": config.alpha_lr}
    policy_optim = torch.optim.Adam([fitted, bounding], fused=True)
    # The limit holds on average over the E-step's states: which these are matters (docs/cost_budget.md).
    buffer = make_buffer(config)
    recent = buffer if config.estep_window >= config.buffer_size else make_buffer(config, config.estep_window)
    transitions_of = n_step_transitions(config)

    def store(steps: TensorDictBase) -> None:
        if len(transitions := transitions_of(steps)):
            buffer.extend(transitions)
        if recent is not buffer:
            recent.extend(steps.select(keys.OBSERVATION).reshape(-1))

    @execute(config, critics.optim, policy_optim)
    def learn(transitions: TensorDictBase, batch: TensorDictBase) -> dict[str, torch.Tensor]:
        """One step of the critics, one E-step and its M-step."""
        values = critics.update(transitions)
        particles(batch)
        if config.waits:
            require_finite(batch.select(keys.PARTICLE_Q_REWARD, keys.PARTICLE_Q_COST), run.updates, "update")
        estep(batch)
        for _ in range(config.m_iterations):
            policy_out = mstep(batch)
            policy_optim.zero_grad()
            (policy_out["loss_policy"] + policy_out["loss_trust_region"]).backward()
            policy_optim.step()
            if retraction:
                values["retracted"] = retraction.step(policy_out["kl_mean"], policy_out["kl_cov"])
        if polyak:
            reference.step()

        dual = estep.solution
        values |= {"eta": dual.eta, "lambda": dual.lam, "lambda_capped": dual.lam_clipped}
        values |= {"estep_cost": dual.expected_cost, "q_cost_limit": estep.cost_limits}
        values |= {"estep_kl": dual.kl, "estep_residual": dual.residual, "feasible": dual.feasible}
        return values | policy_out.select("kl_mean", "kl_cov", "alpha_mean", "alpha_cov", "entropy").to_dict()

    def update() -> dict[str, torch.Tensor]:
        """Draw what is needed and learn from it."""
        transitions = buffer.sample()
        states = transitions if recent is buffer else recent.sample()
        values = learn(transitions, states.select(keys.OBSERVATION))
        run.count_update()
        return values

    def collected(episode_costs: torch.Tensor) -> None:
        """Between two batches of frames: the schedule of the limit, the multiplier, the reference policy."""
        limit = limit_at(config, run.frames)
        multiplier.set_cost_limits(limit)
        if len(episode_costs):
            multiplier.update(episode_costs.mean(0))
        tighter = 1 + multiplier.lam.cpu() if config.multiplier == "feedback" else 1
        estep.set_cost_limits(q_cost_limit(limit, config.gamma, task.episode_length) / tighter)
        if not polyak:
            reference.step()

    components = {
        "policy": policy,
        "norm": task.norm,
        "mstep": mstep,
        "estep": estep,
        "multiplier": multiplier,
        "policy_optim": policy_optim,
        "buffer": buffer,
        **({} if recent is buffer else {"recent": recent}),
    }
    with Run(config, "cvpo", **critics.components, **components) as run:
        train_off_policy(
            run,
            task,
            policy,
            store=store,
            warm_up=lambda: critics.update(buffer.sample()),
            update=update,
            collected=collected,
            shown=("lambda", "eta", "kl_mean"),
        )


if __name__ == "__main__":
    launch(main, Config)
