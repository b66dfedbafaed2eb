"""Evaluation of a policy over whole episodes, in environments of its own."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    policy: TensorDictModuleBase,
    env: EnvBase,
    episodes: int,
    seed: int | None = None,
    max_steps: int = 1_000_000,
    *,
    deterministic: bool = True,
) -> dict[str, torch.Tensor]:
    """Return the undiscounted reward and costs of whole episodes.

    Each of the environment's copies runs from a reset until ``episodes`` episodes have ended. An episode
    counts only if it is among the first ``ceil(episodes / copies)`` of its copy. Short episodes are
    therefore not over-represented.

    Args:
        policy: policy that writes the action.
        env: environment of batch size [] or [N], whose steps write ``reward`` [..., 1] and ``cost`` [..., m].
        episodes: number of episodes, which is rounded up to a multiple of N.
        seed: seed of the first reset and of sampled actions, which makes evaluations comparable; None does
            not reseed. PyTorch's generators are left as they were.
        max_steps: largest number of steps per copy, which guards against endless episodes.
        deterministic: whether the policy runs under ``ExplorationType.DETERMINISTIC`` (for a Gaussian, the
            mean action) instead of ``RANDOM`` (sampled actions).

    Returns:
        ``reward`` [episodes], ``cost`` [episodes, m] (undiscounted sums) and ``length`` [episodes] (steps of
        the policy).

    Raises:
        ValueError: if ``episodes`` is below 1.
        RuntimeError: if ``max_steps`` pass before the episodes have ended.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}, must be at least 1")
    weight = next(policy.parameters(), None)
    policy_device = env.device if weight is None else weight.device
    copies = env.batch_size.numel()
    per_copy = -(-episodes // copies)
    kind = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    cuda = [policy_device] if policy_device.type == "cuda" else []
    with torch.random.fork_rng(cuda), set_exploration_type(kind):
        if seed is not None:
            torch.manual_seed(seed)
            env.set_seed(seed)
        state = env.reset()
        sums: torch.Tensor | None = None
        finished: list[torch.Tensor] = []
        begun = torch.zeros(copies, dtype=torch.long, device=env.device)
        for _ in range(max_steps):
            step, state = env.step_and_maybe_reset(policy(state.to(policy_device)).to(env.device))
            now = step["next"]
            ones = torch.ones_like(now["reward"])
            row = torch.cat([now["reward"], ones, now["cost"]], -1).reshape(copies, -1).double()
            sums = row if sums is None else sums + row
            done = now["done"].reshape(copies)
            if done.any():
                finished.append(sums[done & (begun < per_copy)])
                begun += done
                sums = sums.masked_fill(done[:, None], 0.0)
                if bool((begun >= per_copy).all()):
                    break
        else:
            raise RuntimeError(
                f"{episodes} episodes were not over after {max_steps} steps; "
                "give the environment a max_episode_steps"
            )
    table = torch.cat(finished).cpu()
    return {"reward": table[:, 0], "length": table[:, 1], "cost": table[:, 2:]}
