"""A critic that learns: its loss, its target network and its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn

from safe_components.critics.targets import Polyak
from safe_components.critics.td_loss import COST_SIGNAL, REWARD_SIGNAL, Signal, TDLoss
from safe_components.ops import swapped


class CriticLearner(nn.Module):
    """Policy evaluation: one temporal-difference step of a critic per batch of transitions.

    An update is one step of Adam on `TDLoss`, after which the target network moves by `Polyak`. The
    ``state_dict`` holds the critic and its target. The optimizer's state is not part of it: save
    ``optim.state_dict()`` beside it.

    Args:
        critic: module on the device it will stay on, see `TDLoss`.
        policy: TensorDict module that acts in the next state.
        signals: what the critic estimates, see `TDLoss`.
        lr: step size of Adam.
        polyak: share that the target network keeps at each update.
        encoder: TensorDict module that reads entries of the environment and writes the features
            ``observation``. It learns with the critic, by the same steps of Adam. The next state is encoded
            by the same encoder as a constant, as in DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645). None if
            the transitions hold ``observation``.
        options: further arguments of `TDLoss`, such as ``gamma`` and ``policy_params``.

    Attributes:
        loss: the `TDLoss`.
        encoder: the encoder, or None.
        optim: fused Adam over the critic's parameters.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import Actor
        >>> from safe_components.critics import ConstrainedQEnsemble
        >>> critic = ConstrainedQEnsemble(3, 2, num_reward_members=2, num_cost_members=1)
        >>> learner = CriticLearner(critic, Actor(torch.nn.Linear(3, 2)), gamma=0.9, lr=3e-4)
        >>> following = TensorDict(
        ...     observation=torch.randn(4, 3),
        ...     reward=torch.ones(4, 1),
        ...     cost=torch.zeros(4, 1),
        ...     terminated=torch.zeros(4, 1, dtype=torch.bool),
        ...     batch_size=4,
        ... )
        >>> observation, action = torch.randn(4, 3), torch.randn(4, 2)
        >>> batch = TensorDict(observation=observation, action=action, next=following, batch_size=4)
        >>> list(learner.update(batch))
        ['q_reward', 'loss_q_reward', 'q_cost', 'loss_q_cost']
    """

    def __init__(
        self,
        critic: nn.Module,
        policy: nn.Module,
        signals: Signal | Sequence[Signal] = (REWARD_SIGNAL, COST_SIGNAL),
        *,
        lr: float = 1e-3,
        polyak: float = 0.98,
        encoder: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        if options.get("reduction") == "none":
            raise ValueError("reduction='none' leaves no single loss to take a step on: use 'mean' or 'sum'")
        self.loss = TDLoss(critic, policy, signals, **options)
        # TorchRL warns if the target parameters are used before they have an updater.
        self._target = Polyak(self.loss, eps=polyak)
        # Adam's usual 1e-8 is large beside the gradients of rewards of 0.001.
        learned = [*self.loss.parameters(), *(() if encoder is None else encoder.parameters())]
        self.optim = torch.optim.Adam(learned, lr=lr, eps=1e-20, fused=True)

    @property
    def critic(self) -> nn.Module:
        """The critic with its present parameters; the loss owns them."""
        critic: nn.Module = self.loss.critic
        return critic

    @property
    def params(self) -> TensorDictParams:
        """The parameters of the critic."""
        return self.loss.critic_params

    @property
    def target_params(self) -> TensorDictParams:
        """The parameters of the target network, for instance to score particles with."""
        return self.loss.target_critic_params

    def set_units(self, **units: Tensor) -> None:
        """Set the units of the critic and of its target, such as ``reward [1]`` and ``cost [m]``.

        The values change by these factors, so this is for critics that have not learned yet. Rewards times
        1,000 with a unit times 1,000 then give the same course of training, in other units. A critic without
        a method ``set_units`` keeps the task's units.

        Raises:
            ValueError: if a unit is not positive and finite.
        """
        for name, unit in units.items():
            if not bool(((unit > 0) & unit.isfinite()).all()):
                raise ValueError(f"unit of {name}={unit.tolist()} must be positive and finite")
        if not hasattr(self.critic, "set_units"):
            return
        for params in (self.loss.critic_params, self.loss.target_critic_params):
            with swapped(self.critic, params):
                self.critic.set_units(**units)  # type: ignore[operator]  # a method of the critic's own

    @torch.no_grad()
    def encode(self, states: TensorDictBase) -> TensorDictBase:
        """Return states, or steps with their next states, with the features in place of ``observation``.

        The features are constants, so a loss of the policy does not move the encoder. Without an encoder the
        argument is returned as it is.
        """
        return states if self.encoder is None else self._encoded(states)

    def _encoded(self, states: TensorDictBase) -> TensorDictBase:
        encoder: Any = self.encoder
        encoded: TensorDictBase = encoder(states.copy())  # a shallow copy: the entries stay where they are
        if "next" in states.keys():  # noqa: SIM118  # a TensorDict has no __contains__
            with torch.no_grad():
                encoded.set("next", encoder(states["next"].copy()))
        return encoded

    def update(self, transitions: TensorDictBase) -> dict[str, Tensor]:
        """Take one step on a batch of transitions.

        Returns:
            For each signal with outputs ``q_<name> [n]``, the mean values of the batch's actions, and
            ``loss_q_<name> []``, both detached.
        """
        encoded = transitions if self.encoder is None else self._encoded(transitions)
        out = self.loss(encoded)
        if encoded is not transitions:
            transitions.set(self.loss.tensor_keys.priority, encoded[self.loss.tensor_keys.priority])
        self.optim.zero_grad()
        out["loss_q"].sum().backward()  # one loss; in a population one for each member
        self.optim.step()
        self._target.step()
        signals = self.loss.signals
        means = out["q_mean"].split([transitions[signal.key].shape[-1] for signal in signals], -1)
        metrics: dict[str, Tensor] = {}
        for signal, q in zip(signals, means, strict=True):
            if not q.shape[-1]:  # no cost
                continue
            metrics |= {f"q_{signal.name}": q, f"loss_q_{signal.name}": out[f"loss_q_{signal.name}"]}
        return metrics
