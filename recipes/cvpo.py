"""Constrained Variational Policy Optimization (Liu et al., ICML 2022, arXiv 2201.11927).

    python recipes/cvpo.py                                    # SafetyPointCircle1-v0, limit 25
    python recipes/cvpo.py --env.id SafetyPointGoal1-v0 --cost-limit 25 --seed 1
    python recipes/cvpo.py --resume runs/cvpo-...             # go on from the last checkpoint

Alternate an E-step, which finds the best weights over sampled actions within a KL ball and the
cost limits, and an M-step, which fits the policy to them within a trust region. Every metric
is defined in docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, RewardSum, TransformedEnv
from torchrl.objectives import SoftUpdate

from safe_components import keys
from safe_components.collectors import make_collector
from safe_components.critics import QEnsemble, TDLoss, n_step_transform
from safe_components.envs import make_env
from safe_components.estep import EStepProjector, NewtonDualSolver, ParticleSampler
from safe_components.mstep import HardTrustRegion, MStepLoss
from safe_components.ops import q_cost_limit
from safe_components.policies import gaussian_policy
from safe_components.training import (
    Averages,
    EpisodeStatistics,
    Run,
    RunConfig,
    episode_summary,
    evaluate,
    fit_observation_norm,
    launch,
    observation_norm,
    require_finite,
    scale_steps,
    workers_ignore_interrupt,
)

STORED = (
    keys.OBSERVATION,
    keys.ACTION,
    keys.NEXT_OBSERVATION,
    keys.REWARD,
    keys.COST,
    keys.DONE,
    keys.TERMINATED,
    keys.TRUNCATED,
)


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """CVPO. The fields below are the algorithm's; those above are shared by all recipes."""

    gamma: float = 0.99
    """discount of reward and cost"""
    n_step: int = 3
    """steps of the temporal-difference targets"""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """hidden layers of the policy and the critics"""
    covariance: Literal["full", "diagonal"] = "full"
    """of the Gaussian policy"""
    buffer_size: int = 300_000
    """frames whose transitions are kept; allocated at once and saved with each checkpoint"""
    batch_size: int = 256
    """states per update"""
    estep_window: int = 300_000
    """the policy is improved at states of the last so many frames: fewer react faster, and oscillate"""
    frames_per_batch: int = 200
    """frames collected between updates"""
    updates_per_frame: float = 0.12
    """updates per collected frame"""
    warmup_frames: int = 5_000
    """first frames, of random actions; their statistics scale the observations from then on"""
    critic_warmup: int = 500
    """updates of the critics alone, so that the policy starts with an idea of the cost"""
    reward_critics: int = 2
    """ensemble size; the minimum is used"""
    cost_critics: int = 1
    """ensemble size"""
    cost_aggregate: Literal["mean", "max", "conservative"] = "mean"
    """how the cost ensemble becomes one number"""
    layer_norm: bool = True
    """normalise the critics' first hidden layer"""
    critic_lr: float = 1e-3
    """Adam's step size for the critics"""
    policy_lr: float = 1e-3
    """Adam's step size for the policy"""
    critic_polyak: float = 0.98
    """share the target critics keep at each update"""
    policy_polyak: float = 0.995
    """share the reference policy keeps at each update"""
    num_particles: int = 16
    """K, actions sampled per state in the E-step"""
    epsilon: float = 0.1
    """KL ball of the E-step, in nats"""
    infeasible: Literal["recover", "clip"] = "clip"
    """where no distribution in the ball meets the limit: lower the cost only, or keep lambda at its cap"""
    lambda_max: float = 1.0
    """that cap, in reward per cost; must be well above what keeping the limit is worth"""
    m_iterations: int = 4
    """policy steps per E-step"""
    kl_mean: float = 0.05
    """trust region of the mean, in nats"""
    kl_cov: float = 0.01
    """trust region of the covariance, in nats"""
    alpha_lr: float = 1e-2
    """Adam's step size for the trust region's multipliers"""


def episode_sums() -> RewardSum:
    """Undiscounted sums of reward and cost since the episode began."""
    return RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])


def main(config: Config) -> None:
    """Train."""
    for name in ("batch_size", "buffer_size", "estep_window", "frames_per_batch", "m_iterations"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, must be at least 1")
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = torch.device(config.device)

    # Environments. Sums over episodes come from TorchRL's RewardSum.
    env_settings = dataclasses.asdict(config.env)
    make = functools.partial(make_env, env_settings.pop("id"))
    eval_env = make(**(env_settings | {"num_envs": config.eval_episodes, "num_workers": 1}))
    observation_dim = eval_env.observation_spec[keys.OBSERVATION].shape[-1]
    action_space = eval_env.action_spec_unbatched.space
    num_costs = eval_env.full_reward_spec_unbatched["cost"].shape[-1]
    action_dim = action_space.low.shape[-1]
    if len(config.cost_limit) != num_costs:
        raise ValueError(
            f"cost_limit holds {len(config.cost_limit)} limits, {config.env.id} has {num_costs} costs"
        )

    # Networks. The M-step holds the reference policy, the TD losses the target critics.
    bounds = {"action_low": action_space.low, "action_high": action_space.high}
    hidden = {"hidden_sizes": config.hidden_sizes}
    policy = gaussian_policy(observation_dim, **bounds, **hidden, covariance=config.covariance).to(device)
    critic = functools.partial(
        QEnsemble, observation_dim, action_dim, **hidden, **bounds, layer_norm=config.layer_norm
    )
    reward_critic = critic(config.reward_critics).to(device)
    cost_critic = critic(config.cost_critics, num_costs).to(device)
    mstep = MStepLoss(policy, trust_region=HardTrustRegion(config.kl_mean, config.kl_cov)).to(device)
    # Target parameters follow by Polyak averaging; TorchRL wants the updaters before the first use.
    reference = SoftUpdate(mstep, eps=config.policy_polyak)
    td = {"gamma": config.gamma, "policy_params": mstep.target_policy_params}
    reward_td = TDLoss(reward_critic, policy, reward_key=keys.REWARD, aggregate="min", **td)
    cost_td = TDLoss(cost_critic, policy, reward_key=keys.COST, aggregate=config.cost_aggregate, **td)
    critic_targets = [SoftUpdate(loss, eps=config.critic_polyak) for loss in (reward_td, cost_td)]
    particles = ParticleSampler(
        policy,
        reward_critic,
        cost_critic,
        config.num_particles,
        policy_params=mstep.target_policy_params,
        reward_params=reward_td.target_critic_params,
        cost_params=cost_td.target_critic_params,
        reward_aggregate="min",
        cost_aggregate=config.cost_aggregate,
    )
    # Limits are set on sums over an episode, critics estimate discounted sums: docs/cost_budget.md.
    if eval_env.max_episode_steps is None:
        raise ValueError(f"{config.env.id} has no episode length: set --env.max-episode-steps")
    episode_length = eval_env.max_episode_steps // config.env.frame_skip
    limits = q_cost_limit(config.cost_limit, config.gamma, episode_length)
    solver = NewtonDualSolver(lam_max=config.lambda_max if config.infeasible == "clip" else None)
    estep = EStepProjector(config.epsilon, limits, solver, infeasible=config.infeasible).to(device)

    critic_optim = torch.optim.Adam([*reward_td.parameters(), *cost_td.parameters()], lr=config.critic_lr)
    policy_optim = torch.optim.Adam(
        [
            {"params": list(mstep.policy_params.values(True, True)), "lr": config.policy_lr},
            {"params": list(mstep.trust_region.parameters()), "lr": config.alpha_lr},
        ]
    )
    norm = observation_norm(observation_dim)

    # The limit holds on average over the E-step's states: which these are matters (docs/cost_budget.md).
    def make_buffer(frames: int) -> TensorDictReplayBuffer:
        storage = LazyTensorStorage(frames // config.env.frame_skip, device=device)
        return TensorDictReplayBuffer(storage=storage, batch_size=config.batch_size)

    buffer, recent = make_buffer(config.buffer_size), make_buffer(config.estep_window)
    n_step = n_step_transform(config.n_step, config.gamma)

    def update_critics() -> dict[str, torch.Tensor]:
        """One temporal-difference step."""
        batch = buffer.sample()
        reward_out, cost_out = reward_td(batch), cost_td(batch)
        critic_optim.zero_grad()
        (reward_out["loss_q"] + cost_out["loss_q"]).backward()
        critic_optim.step()
        for target in critic_targets:
            target.step()
        return {
            "q_reward": reward_out["q_mean"],
            "loss_q_reward": reward_out["loss_q"],
            "q_cost": cost_out["q_mean"],
            "loss_q_cost": cost_out["loss_q"],
        }

    def update() -> dict[str, torch.Tensor]:
        """One step of the critics, one E-step and its M-step."""
        values = update_critics()
        batch = recent.sample()
        particles(batch)
        require_finite(batch.select(keys.PARTICLE_Q_REWARD, keys.PARTICLE_Q_COST), run.updates, "update")
        estep(batch)
        for _ in range(config.m_iterations):
            policy_out = mstep(batch)
            policy_optim.zero_grad()
            (policy_out["loss_policy"] + policy_out["loss_trust_region"]).backward()
            policy_optim.step()
        reference.step()
        run.count_update()

        solution = estep.solution
        values |= {
            "eta": solution.eta,
            "lambda": solution.lam,
            "estep_kl": solution.kl,
            "estep_cost": solution.expected_cost,
            "q_cost_limit": limits,
            "estep_residual": solution.residual,
            "feasible": solution.feasible,
            "lambda_capped": solution.lam_clipped,
        }
        policy_metrics = ("kl_mean", "kl_cov", "alpha_mean", "alpha_cov", "entropy")
        return values | {name: policy_out[name] for name in policy_metrics}

    def store(steps: TensorDictBase) -> None:
        """Count the episodes that end in ``steps`` [num_envs, T] and put the transitions into the buffers."""
        run.advance(steps.numel() * config.env.frame_skip)
        require_finite(steps, run.frames)
        episodes.add(steps)
        steps = steps.select(*STORED)
        buffer.extend(n_step.inv(steps).reshape(-1))
        recent.extend(steps.select(keys.OBSERVATION).reshape(-1))

    components = {
        "mstep": mstep,
        "reward_td": reward_td,
        "cost_td": cost_td,
        "estep": estep,
        "critic_optim": critic_optim,
        "policy_optim": policy_optim,
        "buffer": buffer,
        "recent": recent,
        "norm": norm,
    }
    with Run(config, "cvpo", **components) as run:

        def make_training_env() -> TransformedEnv:
            # A resumed run draws new episodes: the environments' own states are not saved.
            env = make(**env_settings, seed=config.seed + run.frames)
            return TransformedEnv(env, Compose(episode_sums(), norm.clone()))

        averages, episodes = Averages(), EpisodeStatistics(config.cost_limit)
        with workers_ignore_interrupt():
            if run.frames == 0:
                steps = config.warmup_frames // (config.env.num_envs * config.env.frame_skip)
                random_env = make_training_env()
                warmup = random_env.rollout(max(steps, 2), break_when_any_done=False)
                random_env.close()
                fit_observation_norm(norm, warmup[keys.OBSERVATION])
                store(scale_steps(norm, warmup))
                for _ in range(config.critic_warmup):
                    update_critics()
            collector = make_collector(
                make_training_env,
                policy,
                frames_per_batch=config.frames_per_batch // config.env.frame_skip,
                policy_device=device,
                env_device="cpu",
            )
        eval_env = TransformedEnv(eval_env, norm.clone())
        updates_owed = 0.0
        for batch in collector:
            since = run.frames
            store(batch)
            updates_owed += (run.frames - since) * config.updates_per_frame
            while updates_owed >= 1:
                averages.add(update())
                updates_owed -= 1
            collector.update_policy_weights_()
            if run.due(config.log_interval, since) or run.finished:
                learned = averages.pop()
                require_finite(learned, run.frames)
                row = episodes.pop() | learned
                if run.due(config.eval_interval, since) or run.finished:
                    ended = evaluate(policy, eval_env, config.eval_episodes, seed=config.seed)
                    row |= episode_summary(ended["reward"], ended["cost"], config.cost_limit, "eval")
                run.log(row, shown=("episode_reward", "episode_cost", "lambda", "eta", "kl_mean"))
            if run.due(config.checkpoint_interval, since):
                run.save()
            if run.finished:
                break
        collector.shutdown()


if __name__ == "__main__":
    launch(main, Config)
