"""n-step returns of reward and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import TensorDict, TensorDictBase, unravel_key
from tensordict.utils import NestedKey
from torchrl.envs.transforms import MultiStepTransform

from safe_components import keys


def n_step_transform(
    n_steps: int, gamma: float, *, reward_keys: Sequence[str] = ("reward", "cost")
) -> MultiStepTransform:
    """TorchRL's `MultiStepTransform`, set up so that costs are summed and terminations are kept.

        r_t ← Σ_{j < n'} γʲ r_{t+j},   s'_t ← s_{t+n'},   flags_t ← flags_{t+n'-1},
        n' = min(n_steps, steps to the end of the episode)

    By default the transform sums only the reward. It also leaves ``terminated`` at step ``t``, although the
    next observation comes from step ``t + n'``: a window that runs into a terminal state would then be
    bootstrapped from it. Pass the result as ``transform`` of a replay buffer whose last storage dimension
    is time. The last ``n_steps`` steps wait there for the steps that complete them. `TDLoss` reads the
    ``steps_to_next_obs`` that is written beside the sums, and discounts by ``γ^n'``.

    Args:
        n_steps: window, at least 1.
        gamma: discount, in ``(0, 1]``; the same as in `TDLoss`.
        reward_keys: entries under ``"next"`` that are summed, each ``[..., T, m]``.

    Returns:
        The transform.

    Raises:
        ValueError: if ``n_steps`` or ``gamma`` is out of range.

    Source: Sutton 1988, as in Rainbow (Hessel et al. 2018, arXiv 1710.02298), section "Multi-step learning".

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> buffer = ReplayBuffer(
        ...     storage=LazyTensorStorage(10), transform=n_step_transform(2, 0.5, reward_keys=["reward"])
        ... )
        >>> ends = torch.tensor([[False], [False], [True], [False], [False]])
        >>> step = TensorDict(reward=torch.ones(5, 1), done=ends, terminated=ends, batch_size=5)
        >>> indices = buffer.extend(TensorDict(next=step, batch_size=5))
        >>> buffer[:]["next", "reward"].flatten(), buffer[:]["next", "terminated"].flatten()
        (tensor([1.5000, 1.5000, 1.0000]), tensor([False,  True,  True]))
    """
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps} must be at least 1")
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma={gamma} must lie in (0, 1]")
    return MultiStepTransform(n_steps, gamma, reward_keys=list(reward_keys), done_keys=[])


def n_step_transitions(
    n_steps: int,
    gamma: float,
    *,
    reward_keys: Sequence[str] = ("reward", "cost"),
    observation_keys: Sequence[NestedKey] = (keys.OBSERVATION,),
) -> NStepTransitions:
    """Return a function from consecutive steps ``[N, T]`` to `n_step_transform`'s transitions ``[n]``.

    The function keeps the last ``n_steps`` steps of each of the ``N`` environments until later steps complete
    them. All calls together give each transition once, as one long batch would, whatever ``T`` is. While no
    step is complete, because ``T`` has not yet exceeded ``n_steps`` in total, the function returns None.

    A transition holds only what critics and policies read, because a replay buffer gathers every entry with
    every batch: ``observation``, ``action``, the next observation, ``terminated``, the sums and
    ``steps_to_next_obs``.

    Args:
        n_steps: window, at least 1.
        gamma: discount, in ``(0, 1]``; the same as in `TDLoss`.
        reward_keys: entries under ``"next"`` that are summed, each ``[N, T, m]``.
        observation_keys: entries that describe a state, at the root and under ``"next"``.

    Returns:
        The function. Its argument needs the entries above and ``("next", "done")``. Its ``state_dict`` holds
        the steps that wait.

    Raises:
        ValueError: if ``n_steps`` or ``gamma`` is out of range.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> transitions_of = n_step_transitions(2, 0.5, reward_keys=["reward"])
        >>> flag = torch.zeros(3, 2, 1, dtype=torch.bool)  # N = 3 environments, T = 2 steps
        >>> number = torch.ones(3, 2, 1)
        >>> step = TensorDict(
        ...     observation=number, reward=number, done=flag, terminated=flag, batch_size=[3, 2]
        ... )
        >>> steps = TensorDict(observation=number, action=number, next=step, batch_size=[3, 2])
        >>> print(transitions_of(steps))  # both steps of each environment wait
        None
        >>> transitions_of(steps)["next", "reward"].flatten()
        tensor([1.5000, 1.5000, 1.5000, 1.5000, 1.5000, 1.5000])
    """
    return NStepTransitions(n_step_transform(n_steps, gamma, reward_keys=reward_keys), observation_keys)


class NStepTransitions:
    """The function that :func:`n_step_transitions` returns, with the steps that wait as its state.

    Args:
        transform: transform from :func:`n_step_transform`.
        observation_keys: entries that describe a state.
    """

    def __init__(
        self, transform: MultiStepTransform, observation_keys: Sequence[NestedKey] = (keys.OBSERVATION,)
    ) -> None:
        self._transform = transform
        sums = [("next", key) for key in transform.reward_keys]
        following = [unravel_key(("next", key)) for key in observation_keys]
        states = [*observation_keys, keys.ACTION, *following]
        self._kept = [*states, *sums, keys.TERMINATED, "steps_to_next_obs"]

    def __call__(self, steps: TensorDictBase) -> TensorDictBase | None:
        """Add steps ``[N, T]``; return the transitions ``[n]`` that they complete, or None without any."""
        complete = self._transform.inv(
            steps.clone()
        )  # the caller may reuse the memory of steps that wait here
        return None if complete is None else complete.select(*self._kept).reshape(-1)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps ``[N, n_steps]`` that wait, as nested tensors under ``"steps"``; None at first."""
        waiting = self._transform._buffer
        return {"steps": None if waiting is None else waiting.to_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the steps that wait."""
        steps = state["steps"]
        self._transform._buffer = None if steps is None else TensorDict(steps).auto_batch_size_(2)
