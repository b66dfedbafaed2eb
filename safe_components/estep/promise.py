"""What an E-step promises, and what the policy fitted to it delivers, by the same critic."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from safe_components.estep.particles import ParticleSampler
from safe_components.estep.projector import EStepProjector
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
from safe_components.ops import squash_of


class Promise:
    """Compare a policy improvement with the E-step that asked for it, on states that were not fitted.

        spread = sqrt(mean_b Var_k Q[b, k])
        promised = mean_b (E_q Q - E_p Q) / spread
        delivered = mean_b mean_k (Q(o_b, a'_bk) - Q(o_b, a_bk)) / spread

    The actions ``a`` are particles of the reference policy ``p``, and ``a'`` are actions of the fitted policy
    with the same noise. For a policy that is no Gaussian, "the same noise" are draws from the same random
    numbers. All scores come from one critic, as it was when the promise was made. So the two
    numbers differ by what the M-step lost, and not by what the critic has learned since. Whether the episodes
    then follow is for the environment to say.

    The numbers have no unit: 1 is the spread of the score over the actions of the reference policy in one
    state. They can therefore be compared between the reward, the costs, and tasks.

    Args:
        particles: sampler of the E-step.
        estep: the E-step itself. Its warm start is left as it is.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> _ = torch.manual_seed(0)
        >>> wide = lambda o: (torch.zeros_like(o), torch.eye(1).expand(*o.shape, 1))
        >>> policy = TensorDictModule(wide, in_keys=["observation"], out_keys=["loc", "scale_tril"])
        >>> critic = lambda o, a: (a.unsqueeze(0), 0 * a.unsqueeze(0))  # the larger the better; no cost
        >>> promise = Promise(ParticleSampler(policy, critic, 16), EStepProjector(0.125, [1.0]))
        >>> made = promise.make(torch.zeros(256, 1))
        >>> round(made["promised_reward"].item(), 1)  # a Gaussian moves by sqrt(2 ε) = 0.5 spreads
        0.5
        >>> shifted = lambda o: (torch.full_like(o, 0.2), torch.eye(1).expand(*o.shape, 1))
        >>> fitted = TensorDictModule(shifted, in_keys=["observation"], out_keys=["loc", "scale_tril"])
        >>> round(promise.keep(fitted)["delivered_reward"].item(), 1)
        0.2
    """

    def __init__(self, particles: ParticleSampler, estep: EStepProjector) -> None:
        self.particles, self.estep = particles, estep
        self._made: tuple[TensorDictBase, TensorDictBase | None, list[Tensor], list[Tensor]] | None = None
        self._random_state: Tensor | None = None  # from which the particles were drawn

    @torch.no_grad()
    def make(self, observation: Tensor) -> dict[str, Tensor]:
        """Solve an E-step on these states and remember it.

        Args:
            observation: ``[B, o]``, states that the M-step does not see.

        Returns:
            ``promised_reward []`` and ``promised_cost [m]``, in spreads, and ``spread_reward []`` and
            ``spread_cost [m]``, discounted.
        """
        self._random_state = _generator(observation).get_rng_state()
        states = self.particles(TensorDict({OBSERVATION: observation}, batch_size=observation.shape[:1]))
        q_reward = states[PARTICLE_Q_REWARD]
        if self.particles.soft:  # an entropy moves the weights, and the gain is that of Q
            q_reward, _ = self.particles.scores(observation, states[PARTICLE_ACTION])
        scores = [q_reward.unsqueeze(-1), states[PARTICLE_Q_COST]]
        weight = self.estep.solve(states[PARTICLE_Q_REWARD], states[PARTICLE_Q_COST]).weight.unsqueeze(-1)
        spreads = [(q.var(-2) if q.numel() else q.sum(-2)).mean(0).sqrt() for q in scores]
        self._made = states, self.particles.critic_snapshot(), [q.mean(-2).mean(0) for q in scores], spreads
        gains = [((weight * q).sum(-2) - q.mean(-2)).mean(0) for q in scores]
        reward, cost = (_in_spreads(gain, spread) for gain, spread in zip(gains, spreads, strict=True))
        return {
            "promised_reward": reward.squeeze(-1),
            "promised_cost": cost,
            "spread_reward": spreads[0].squeeze(-1),
            "spread_cost": spreads[1],
        }

    @torch.no_grad()
    def keep(self, policy: nn.Module) -> dict[str, Tensor]:
        """Say what ``policy`` delivers of the last promise.

        Args:
            policy: the fitted policy, of the kind that the particles are drawn from.

        Returns:
            ``delivered_reward []`` and ``delivered_cost [m]``, in spreads.

        Raises:
            RuntimeError: before the first promise.
        """
        if self._made is None:
            raise RuntimeError("nothing was promised yet: call make on states first")
        states, params, before, spreads = self._made
        action = self._same_noise(policy, states)
        q_reward, q_cost = self.particles.scores(states[OBSERVATION], action, params)
        after = [q_reward.mean(-1, keepdim=True).mean(0), q_cost.mean(-2).mean(0)]
        reward, cost = (
            _in_spreads(new - old, spread) for new, old, spread in zip(after, before, spreads, strict=True)
        )
        return {"delivered_reward": reward.squeeze(-1), "delivered_cost": cost}

    def _same_noise(self, policy: nn.Module, states: TensorDictBase) -> Tensor:
        """Return actions ``[B, K, a]`` of ``policy`` with the noise of the particles."""
        if PARTICLE_LOC in states.keys(True):
            squash = squash_of(policy)
            drawn = states[PARTICLE_ACTION if squash is None else PARTICLE_LATENT]
            offset = (drawn - states[PARTICLE_LOC].unsqueeze(-2)).mT
            noise = torch.linalg.solve_triangular(states[PARTICLE_SCALE_TRIL], offset, upper=False)
            parameters = getattr(policy, "get_dist_params", policy)(states.select(OBSERVATION))
            action: Tensor = parameters[LOC].unsqueeze(-2) + (parameters[SCALE_TRIL] @ noise).mT
            return action if squash is None else squash(action)
        observation = states[OBSERVATION]
        with torch.random.fork_rng([observation.device] if observation.is_cuda else []):
            _generator(observation).set_rng_state(self._random_state)
            return self.particles.drawn(policy, states.select(OBSERVATION))


def _generator(tensor: Tensor) -> Any:
    """The module that holds the random state of a tensor's device."""
    return torch.cuda if tensor.is_cuda else torch


def _in_spreads(gain: Tensor, spread: Tensor) -> Tensor:
    """``gain / spread``, and 0 for a score that is the same for all actions."""
    return torch.where(spread > 0, gain / spread, 0.0)
