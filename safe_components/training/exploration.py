"""The noise of the policies that act in training."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.data import Bounded
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import AdditiveGaussianModule

from safe_components import keys
from safe_components.training.task import Task

__all__ = ["DeterministicEpisodes", "constrained_steps", "with_noise"]


class DeterministicEpisodes(TensorDictModuleBase):  # type: ignore[misc]  # TensorDict has no types
    """A policy that acts without noise in a share of the episodes, and as before in the others.

        a ← a_deterministic if u < share else a,    u ~ U[0, 1) at each reset

    The policy that is deployed usually acts without noise. These episodes measure its cost during training.
    Reads ``episode_draw``, ``u``, which a ``TensorDictPrimer`` draws for each episode and `Task` adds, and
    writes ``deterministic``, whether ``u < share``.

    Args:
        policy: policy that writes the action; TorchRL's exploration type turns its noise off.
        share: share of the episodes without noise, in ``[0, 1]``.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from safe_components.policies import gaussian_policy
        >>> policy = gaussian_policy(3, action_low=[-1.0], action_high=[1.0])
        >>> acting = DeterministicEpisodes(policy, share=0.5)
        >>> state = {"observation": torch.zeros(2, 3), "episode_draw": torch.tensor([[0.2], [0.7]])}
        >>> acting(TensorDict(state, [2]))["deterministic"].flatten()
        tensor([ True, False])
    """

    def __init__(self, policy: TensorDictModuleBase, share: float) -> None:
        super().__init__()
        self.policy, self.share = policy, share
        self.in_keys = [*policy.in_keys, keys.EPISODE_DRAW]
        self.out_keys = [*policy.out_keys, keys.DETERMINISTIC]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action, and whether it is the deterministic one."""
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            deterministic = self.policy(tensordict.select(*self.policy.in_keys))[keys.ACTION]
        tensordict = self.policy(tensordict)
        chosen = tensordict[keys.EPISODE_DRAW] < self.share
        tensordict[keys.ACTION] = torch.where(chosen, deterministic, tensordict[keys.ACTION])
        return tensordict.set(keys.DETERMINISTIC, chosen)


def constrained_steps(steps: TensorDictBase) -> TensorDictBase:
    """Return the steps that the limits hold for: all, or those of `DeterministicEpisodes` without noise.

    Args:
        steps: steps of any batch size.

    Returns:
        ``steps`` itself where no episode is told apart, else the steps ``[n]`` without noise, ``n >= 0``.
    """
    if keys.DETERMINISTIC not in steps:
        return steps
    return steps[steps[keys.DETERMINISTIC].squeeze(-1)]


def with_noise(policy: TensorDictModuleBase, std: float, task: Task) -> TensorDictSequential:
    """Return the policy with Gaussian noise on its actions, for exploration.

        a ← clip(a + h std ξ, low, high),   ξ ~ N(0, I),   h = (high - low) / 2

    The noise is TorchRL's ``AdditiveGaussianModule`` with a constant standard deviation. It acts only while
    exploration is on, as it is in TorchRL's collectors.

    Args:
        policy: policy that writes the action.
        std: standard deviation of the noise, as a share of half the action range.
        task: environments that give the action bounds and the device.
    """
    low, high = task.bounds["action_low"], task.bounds["action_high"]
    noise = AdditiveGaussianModule(
        Bounded(low, high, shape=low.shape, dtype=low.dtype),
        sigma_init=float(std),
        sigma_end=float(std),
        std=((high - low) / 2).tolist(),
    )
    return TensorDictSequential(policy, noise).to(task.device)
