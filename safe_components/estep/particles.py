"""Particles: actions drawn from the reference policy and scored by the critics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from safe_components.keys import (
    LOC,
    OBSERVATION,
    PARTICLE_ACTION,
    PARTICLE_LOC,
    PARTICLE_Q_COST,
    PARTICLE_Q_REWARD,
    PARTICLE_SCALE_TRIL,
    SCALE_TRIL,
)
from safe_components.ops import Aggregate, aggregate, network_outputs, single_network, swapped

Critic = Callable[[Tensor, Tensor], Tensor]


class ParticleSampler(TensorDictModuleBase):
    """Draw ``K`` actions per state from the reference policy and score them.

        a_bk = loc(o_b) + L(o_b) noise_bk,   noise ~ N(0, I),      b = 1..B, k = 1..K
        Q_r[b, k] = reduce_e Q_r,e(o_b, a_bk)        Q_c,i[b, k] = reduce_e Q_c,i,e(o_b, a_bk)

    Reads ``observation`` ``[B, o]``; writes, all without gradient, ``("particles", "action")`` ``[B, K, a]``,
    ``("particles", "q_reward")`` ``[B, K]``, ``("particles", "q_cost")`` ``[B, K, m]`` and the reference
    distribution, ``("particles", "loc")`` ``[B, a]`` and ``("particles", "scale_tril")`` ``[B, a, a]``.

    Args:
        policy: TensorDict module that maps ``observation`` to ``loc`` and ``scale_tril``. Of a policy that
            samples as well (it has ``get_dist_params``, as TorchRL's ``ProbabilisticActor``), the part that
            makes the parameters is run.
        reward_critic: ``(observation [B, o], action [B, K, a]) -> [E, B, K, 1]``, discounted reward of
            every ensemble member.
        cost_critic: the same for ``m`` costs, ``-> [E, B, K, m]``, discounted cost; ``None`` is ``m = 0``.
        num_particles: ``K``, at least 2.
        policy_params: parameters to run ``policy`` with, such as a loss module's target parameters
            (``TensorDictParams``); ``None`` uses its own.
        reward_params: the same for ``reward_critic``.
        cost_params: the same for ``cost_critic``.
        split: for one critic that scores reward and costs in a call: given as ``reward_critic``, with
            ``cost_critic=None``, this takes what it returns apart, into ``[E, B, K, 1]`` and
            ``[E', B, K, m]``.
        reward_aggregate: how members are reduced, see :func:`~safe_components.ops.aggregate`.
        cost_aggregate: the same for the costs.
        cost_std_coef: ``k`` of the ``"conservative"`` aggregates.
        antithetic: draw ``K / 2`` noises and use each with both signs: the particles' mean is then
            ``loc`` exactly, which lowers the sampling error. ``K`` must be even.
        observation_key: name of the observation.

    Raises:
        ValueError: ``num_particles < 2``, odd with ``antithetic``, or a critic's answer of another shape.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> head = lambda o: (o, torch.eye(2).expand(*o.shape, 2))
        >>> policy = TensorDictModule(head, in_keys=["observation"], out_keys=["loc", "scale_tril"])
        >>> critic = lambda o, a: -a.square().sum(-1, keepdim=True).unsqueeze(0)
        >>> sampler = ParticleSampler(policy, critic, None, num_particles=8)
        >>> batch = sampler(TensorDict(observation=torch.zeros(3, 2), batch_size=[3]))
        >>> batch["particles", "action"].shape, batch["particles", "q_cost"].shape
        (torch.Size([3, 8, 2]), torch.Size([3, 8, 0]))
    """

    def __init__(
        self,
        policy: nn.Module,
        reward_critic: Critic,
        cost_critic: Critic | None,
        num_particles: int,
        *,
        policy_params: TensorDictBase | None = None,
        reward_params: TensorDictBase | None = None,
        cost_params: TensorDictBase | None = None,
        split: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        reward_aggregate: Aggregate = "min",
        cost_aggregate: Aggregate = "mean",
        cost_std_coef: float = 0.5,
        antithetic: bool = False,
        observation_key: NestedKey = OBSERVATION,
    ) -> None:
        super().__init__()
        if num_particles < 2:
            raise ValueError(f"num_particles={num_particles} must be at least 2: one cannot be weighted")
        if antithetic and num_particles % 2:
            raise ValueError(f"num_particles={num_particles} must be even for antithetic noise")
        if split is not None and cost_critic is not None:
            raise ValueError("split is for a reward_critic that scores the costs as well: cost_critic=None")
        # Tuples keep the networks out of this module's parameters: the losses own and save them.
        self._policy = (policy, policy_params)
        self._reward = (reward_critic, reward_params)
        self._cost = (cost_critic, cost_params)
        self._split = split
        self.num_particles = num_particles
        self.reward_aggregate = reward_aggregate
        self.cost_aggregate = cost_aggregate
        self.cost_std_coef = cost_std_coef
        self.antithetic = antithetic
        self.in_keys = [observation_key]
        self.out_keys = [
            PARTICLE_ACTION,
            PARTICLE_Q_REWARD,
            PARTICLE_Q_COST,
            PARTICLE_LOC,
            PARTICLE_SCALE_TRIL,
        ]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the particles, their scores and the reference distribution."""
        observation = tensordict.get(self.in_keys[0])
        loc, scale_tril = self._reference(tensordict)
        action = loc.unsqueeze(-2) + self._noise(loc) @ scale_tril.mT
        members, costs = _scores(*self._reward, observation, action, "reward_critic"), None
        if self._split is not None:
            members, costs = self._split(members)
        elif self._cost[0] is not None:
            costs = _scores(*self._cost, observation, action, "cost_critic")
        if members.shape[-1] != 1:
            raise ValueError(f"reward_critic must have one output, got shape {tuple(members.shape)}")
        q_reward = aggregate(members, self.reward_aggregate, self.cost_std_coef).squeeze(-1)
        if costs is None:
            q_cost = q_reward.new_zeros(*q_reward.shape, 0)
        else:
            q_cost = aggregate(costs, self.cost_aggregate, self.cost_std_coef)
        values = (action, q_reward, q_cost, loc, scale_tril)
        for key, value in zip(self.out_keys, values, strict=True):
            tensordict.set(key, value)
        return tensordict

    def _reference(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        policy, params = self._policy
        inputs = tensordict.select(*getattr(policy, "in_keys", self.in_keys))
        network = single_network(policy)
        if network is not None:
            outputs = network_outputs(network, inputs, params)
            return outputs[LOC], outputs[SCALE_TRIL]
        with swapped(policy, params):
            parameters: Any = getattr(policy, "get_dist_params", policy)
            outputs = parameters(inputs)
        return outputs.get(LOC), outputs.get(SCALE_TRIL)

    def _noise(self, loc: Tensor) -> Tensor:
        draws = self.num_particles // 2 if self.antithetic else self.num_particles
        noise = torch.randn(*loc.shape[:-1], draws, loc.shape[-1], dtype=loc.dtype, device=loc.device)
        return torch.cat([noise, -noise], dim=-2) if self.antithetic else noise


def _scores(
    critic: Any, params: TensorDictBase | None, observation: Tensor, action: Tensor, name: str
) -> Tensor:
    with swapped(critic, params):
        members = critic(observation, action)
    if members.ndim != action.ndim + 1 or members.shape[1:-1] != action.shape[:-1]:
        raise ValueError(
            f"{name} must return [E, B, K, outputs] for actions {tuple(action.shape)}, "
            f"got {tuple(members.shape)}"
        )
    return members
