"""Particles: actions drawn from the reference policy and scored by the critic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules.distributions.utils import sample_and_log_prob

from safe_components.keys import (
    LOC,
    OBSERVATION,
    PARTICLE_ACTION,
    PARTICLE_LATENT,
    PARTICLE_LOC,
    PARTICLE_Q_COST,
    PARTICLE_Q_REWARD,
    PARTICLE_SCALE_TRIL,
    SCALE_TRIL,
)
from safe_components.ops import (
    Aggregate,
    Temperature,
    aggregate,
    has_distribution,
    is_gaussian,
    network_outputs,
    require_states,
    single_network,
    squash_of,
    standard_normal,
    swapped,
)

Critic = Callable[[Tensor, Tensor], "Tensor | tuple[Tensor, Tensor]"]


class ParticleSampler(TensorDictModuleBase):  # type: ignore[misc]  # TensorDict has no types
    """Draw ``K`` actions per state from the reference policy and score them.

        x_bk = loc(o_b) + L(o_b) noise_bk,   noise ~ N(0, I),      b = 1..B, k = 1..K
        a_bk = x_bk, or the squashed x_bk of a squashed Gaussian
        Q_r[b, k] = reduce_e Q_r,e(o_b, a_bk)        Q_c,i[b, k] = reduce_e Q_c,i,e(o_b, a_bk)

    With an ``entropy_coef`` ``α`` the reward becomes ``Q_r[b, k] - α log π(a_bk|o_b)``. Its mean under a new
    policy ``q`` is ``E_q Q_r + α H(q) + α KL(q || π)``, and the ball of the E-step bounds the last term.

    Reads ``observation`` ``[B, o]``; writes, all without gradient, ``("particles", "action")`` ``[B, K, a]``,
    ``("particles", "q_reward")`` ``[B, K]``, ``("particles", "q_cost")`` ``[B, K, m]`` and the reference
    distribution, ``("particles", "loc")`` ``[B, a]`` and ``("particles", "scale_tril")`` ``[B, a, a]``.

    Of a squashed Gaussian, it also writes ``x``, ``("particles", "latent")`` ``[B, K, a]``, which its M-step
    fits. Any other policy with a distribution (``get_dist``), such as a mixture or a categorical one, is
    asked for ``K`` samples. Then ``loc`` and ``scale_tril`` are not written.

    Args:
        policy: TensorDict module that maps ``observation`` to ``loc`` and ``scale_tril``, or one with a
            distribution. Of a policy that also samples (it has ``get_dist_params``, as TorchRL's
            ``ProbabilisticActor``), only the part that computes these parameters runs.
        critic: maps ``observation`` ``[B, o]`` and ``action`` ``[B, K, a]`` to the pair ``q_reward``
            ``[E_r, B, K, 1]`` and ``q_cost`` ``[E_c, B, K, m]``, the discounted reward and costs of every
            ensemble member. A critic that returns a single tensor scores the reward alone: ``m = 0``.
        num_particles: ``K``, at least 2.
        policy_params: parameters to run ``policy`` with, such as a loss module's target parameters
            (``TensorDictParams``); ``None`` uses its own.
        critic_params: the same for ``critic``.
        reward_aggregate: how members are reduced, see :func:`~safe_components.ops.aggregate`.
        cost_aggregate: the same for the costs.
        std_coef: ``k`` of the ``"conservative"`` aggregates.
        antithetic: draw ``K / 2`` noises and use each with both signs. The particles' mean is then ``loc``
            exactly, which lowers the sampling error. ``K`` must be even, and the policy a Gaussian.
        entropy_coef: ``α`` in reward per nat: a number, a tensor ``[]`` that is shared and not copied, or a
            function that returns its present value; 0 for no entropy. The critic should be trained with the
            same one, as by ``TDLoss(entropy_coef=...)``.
        observation_key: name of the observation.

    Raises:
        ValueError: if ``num_particles < 2``, or it is odd with ``antithetic``, or the policy is no Gaussian
            with ``antithetic``; in a call, if the critic returns other shapes, or the batch is empty.
        TypeError: if the policy has neither ``loc`` and ``scale_tril`` nor a distribution.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> head = lambda o: (o, torch.eye(2).expand(*o.shape, 2))
        >>> policy = TensorDictModule(head, in_keys=["observation"], out_keys=["loc", "scale_tril"])
        >>> critic = lambda o, a: (-a.square().sum(-1, keepdim=True).unsqueeze(0), a.abs().unsqueeze(0))
        >>> sampler = ParticleSampler(policy, critic, num_particles=8)
        >>> batch = sampler(TensorDict(observation=torch.zeros(3, 2), batch_size=[3]))
        >>> batch["particles", "action"].shape, batch["particles", "q_cost"].shape
        (torch.Size([3, 8, 2]), torch.Size([3, 8, 2]))
    """

    #: A call never waits for the device.
    synchronizes = False
    policy: Any
    policy_params: TensorDictBase | None
    critic: Any
    critic_params: TensorDictBase | None

    def __init__(
        self,
        policy: nn.Module,
        critic: Critic,
        num_particles: int,
        *,
        policy_params: TensorDictBase | None = None,
        critic_params: TensorDictBase | None = None,
        reward_aggregate: Aggregate = "min",
        cost_aggregate: Aggregate = "mean",
        std_coef: float = 0.5,
        antithetic: bool = False,
        entropy_coef: float | Tensor | Callable[[], Tensor] = 0.0,
        observation_key: NestedKey = OBSERVATION,
    ) -> None:
        super().__init__()
        if num_particles < 2:
            raise ValueError(f"num_particles={num_particles} must be at least 2: one cannot be weighted")
        if antithetic and num_particles % 2:
            raise ValueError(f"num_particles={num_particles} must be even for antithetic noise")
        self._is_gaussian = is_gaussian(policy)
        if not self._is_gaussian and not has_distribution(policy):
            raise TypeError(
                f"{type(policy).__name__} does not write {LOC!r} and {SCALE_TRIL!r}, and it has no "
                "distribution (get_dist): there is nothing to draw particles from"
            )
        if not self._is_gaussian and antithetic:
            raise ValueError(f"antithetic particles need a Gaussian that writes {LOC!r} and {SCALE_TRIL!r}")
        # Kept out of this module's parameters: the losses own and save them.
        self.__dict__.update(policy=policy, policy_params=policy_params)
        self.__dict__.update(critic=critic, critic_params=critic_params)
        self.num_particles = num_particles
        self.reward_aggregate = reward_aggregate
        self.cost_aggregate = cost_aggregate
        self.std_coef = std_coef
        self.antithetic = antithetic
        self.entropy_coef = Temperature(entropy_coef)
        self.in_keys = [observation_key]
        self.out_keys = [PARTICLE_ACTION, PARTICLE_Q_REWARD, PARTICLE_Q_COST]
        if self._is_gaussian:
            self.out_keys += [PARTICLE_LOC, PARTICLE_SCALE_TRIL]
        if squash_of(policy) is not None:
            self.out_keys += [PARTICLE_LATENT]

    @property
    def soft(self) -> bool:
        """Whether the particles' scores hold an entropy."""
        return self.entropy_coef.active

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the particles, their scores and the reference distribution."""
        require_states(tensordict.get(self.in_keys[0]).shape[:-1], str(self.in_keys[0]))
        if self._is_gaussian:
            loc, scale_tril = self._gaussian(tensordict)
            noise = self._noise(loc)
            action = loc.unsqueeze(-2) + noise @ scale_tril.mT
            log_prob = _gaussian_log_prob(noise, scale_tril) if self.soft else None
            reference = {PARTICLE_LOC: loc, PARTICLE_SCALE_TRIL: scale_tril}
            squash = squash_of(self.policy)
            if squash is not None:
                reference[PARTICLE_LATENT] = action
                log_prob = None if log_prob is None else log_prob - squash.log_slope(action)
                action = squash(action)
        else:
            (action, log_prob), reference = self._samples(tensordict), {}
        q_reward, q_cost = self.scores(tensordict.get(self.in_keys[0]), action)
        if log_prob is not None:
            q_reward = q_reward - self.entropy_coef() * log_prob
        values = {PARTICLE_ACTION: action, PARTICLE_Q_REWARD: q_reward, PARTICLE_Q_COST: q_cost}
        for key, value in (values | reference).items():
            tensordict.set(key, value)
        return tensordict

    def _gaussian(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        policy, params = self.policy, self.policy_params
        inputs = self._inputs(tensordict)
        network = single_network(policy)
        if network is not None:
            outputs = network_outputs(network, inputs, params)
            return outputs[LOC], outputs[SCALE_TRIL]
        with swapped(policy, params):
            parameters: Any = getattr(policy, "get_dist_params", policy)
            outputs = parameters(inputs)
        return outputs.get(LOC), outputs.get(SCALE_TRIL)

    def _samples(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """``K`` actions per state ``[B, K, ...]`` from the policy's own distribution; ``log π`` if needed."""
        with swapped(self.policy, self.policy_params):
            if not self.soft:
                return self.drawn(self.policy, self._inputs(tensordict)), None
            dist = self.policy.get_dist(self._inputs(tensordict))
            # Scored where they are drawn: inverting a saturated tanh would lose the draw.
            action, log_prob = sample_and_log_prob(dist, (self.num_particles,))
            return action.movedim(0, len(dist.batch_shape)), log_prob.movedim(0, -1)

    def drawn(self, policy: Any, inputs: TensorDictBase) -> Tensor:
        """``K`` actions per state ``[B, K, ...]`` from the distribution of any policy, as it is now."""
        dist = policy.get_dist(inputs)
        action: Tensor = dist.sample((self.num_particles,))
        return action.movedim(0, len(dist.batch_shape))

    def _inputs(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.select(*getattr(self.policy, "in_keys", self.in_keys))

    def _noise(self, loc: Tensor) -> Tensor:
        draws = self.num_particles // 2 if self.antithetic else self.num_particles
        noise = standard_normal((*loc.shape[:-1], draws, loc.shape[-1]), loc)
        return torch.cat([noise, -noise], dim=-2) if self.antithetic else noise

    def critic_snapshot(self) -> TensorDictBase | None:
        """Return a copy of the parameters that score the particles; None for a critic without any."""
        critic, params = self.critic, self.critic_params
        if params is None:
            if not isinstance(critic, nn.Module):
                return None
            params = TensorDict.from_module(critic)
        return params.detach().clone()

    @torch.no_grad()
    def scores(
        self, observation: Tensor, action: Tensor, params: TensorDictBase | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``q_reward`` ``[B, K]`` and ``q_cost`` ``[B, K, m]``, reduced over the members.

        Args:
            observation: ``[B, o]``.
            action: ``[B, K, a]``.
            params: parameters of the critic, such as a :meth:`critic_snapshot`; None takes the present ones.
        """
        critic, params = self.critic, self.critic_params if params is None else params
        module: Any = critic
        with swapped(module, params):
            scores = critic(observation, action)
        q_reward, q_cost = (scores, None) if isinstance(scores, Tensor) else scores
        if q_reward.shape[1:] != (*action.shape[:-1], 1):
            raise ValueError(
                f"critic must return the reward as [E, B, K, 1] for actions {tuple(action.shape)}, "
                f"got {tuple(q_reward.shape)}"
            )
        reward = aggregate(q_reward, self.reward_aggregate, self.std_coef).squeeze(-1)
        if q_cost is None:
            return reward, reward.new_zeros(*reward.shape, 0)
        if q_cost.shape[1:-1] != action.shape[:-1]:
            raise ValueError(
                f"critic must return the costs as [E, B, K, m] for actions {tuple(action.shape)}, "
                f"got {tuple(q_cost.shape)}"
            )
        return reward, aggregate(q_cost, self.cost_aggregate, self.std_coef)


def _gaussian_log_prob(noise: Tensor, scale_tril: Tensor) -> Tensor:
    """``log N(loc + L noise_k; loc, L Lᵀ)`` for standard normal ``noise [..., K, a]``: ``[..., K]``."""
    log_scale = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    constant = log_scale + 0.5 * noise.shape[-1] * math.log(2 * math.pi)
    return -0.5 * noise.square().sum(-1) - constant
