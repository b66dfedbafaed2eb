"""The actor loss of TD3-Lag and DDPG-Lag: a deterministic policy gradient charged for the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from safe_components.lagrangian.actor_loss import LagrangianActorLoss
from safe_components.ops import Aggregate, swapped


class DeterministicLagLoss(LagrangianActorLoss):
    """Deterministic policy gradient on the Lagrangian.

        min_π  mean_b [ -agg_e Q_r(s, π(s)) + Σ_i λ_i agg_e Q_c,i(s, π(s)) ] / (1 + Σ_i λ_i)

    The critics' parameters and ``λ`` are constants here: `TDLoss` learns the former, episodes move the
    latter. Dividing by ``1 + Σλ`` keeps the gradient's size when ``λ`` grows; a given ``λ`` has the same
    minimiser with and without.
    The target actor of TD3 and DDPG is held in ``target_policy_params``: attach ``SoftUpdate`` and give it to
    ``TDLoss(policy_params=...)``. With ``λ = 0`` this is the actor loss of TorchRL's ``TD3Loss`` (with
    ``reward_aggregate="first"``) and ``DDPGLoss`` (one member).

    Args:
        policy: actor without a distribution, as `deterministic_policy`.
        reward_critic: module ``(observation [B, o], action [B, a]) -> [E, B, 1]``, as `QEnsemble`.
        cost_critic: the same, ``[E, B, m]``.
        multiplier: callable that returns ``λ [m]``, as `GradientMultiplier` and `PIDMultiplier`.
        reward_aggregate: how members become one: ``"first"``, ``"min"``, ``"mean"``, ``"max"``,
            ``"conservative"`` (mean + ``std_coef`` standard deviations).
        cost_aggregate: likewise for every cost.
        std_coef: see ``reward_aggregate``.
        normalise: divide by ``1 + Σλ``.
        augmentation: ``c`` of CAL's augmented Lagrangian, which puts `augmented_multiplier` in the place
            of ``λ``; 0 is off.
        q_cost_limit: ``d_Q [m]``, the limits in the critics' unit; needed by ``augmentation``.

    Returns:
        From ``forward``, a TensorDict without batch size, all but the loss detached: ``loss_actor []``,
        ``q_reward []`` and ``q_cost [m]`` (mean aggregated values of the policy's actions, discounted), ``lam
        [m]`` and ``lam_effective [m]`` (what multiplied the costs: ``lam``, or `augmented_multiplier`).

    Raises:
        ValueError: if a setting is out of range; in ``forward``, if the critics' outputs, the
            multiplier and the limits do not have the same number of costs.

    Source: DDPG, Lillicrap et al. 2016 (arXiv 1509.02971), eq. 6; TD3, Fujimoto et al. 2018 (arXiv
    1802.09477), algorithm 1; the Lagrangian as in Ray et al. 2019, "Benchmarking safe exploration".

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.objectives import SoftUpdate
        >>> class Critic(torch.nn.Module):
        ...     def forward(self, observation, action):
        ...         return action.sum(-1, keepdim=True).unsqueeze(0)
        >>> actor = TensorDictModule(torch.nn.Linear(3, 2), ["observation"], ["action"])
        >>> loss = DeterministicLagLoss(actor, Critic(), Critic(), lambda: torch.tensor([1.0]))
        >>> target_updater = SoftUpdate(loss, tau=0.005)
        >>> out = loss(TensorDict(observation=torch.randn(5, 3), batch_size=5))
        >>> out["loss_actor"].abs().item()  # reward and cost cancel
        0.0
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        reward_critic: nn.Module,
        cost_critic: nn.Module,
        multiplier: Callable[[], Tensor],
        *,
        reward_aggregate: Aggregate = "first",
        cost_aggregate: Aggregate = "mean",
        std_coef: float = 0.5,
        normalise: bool = True,
        augmentation: float = 0.0,
        q_cost_limit: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        if hasattr(policy, "get_dist"):
            raise ValueError(
                f"DeterministicLagLoss needs a policy without a distribution, got a {type(policy).__name__}; "
                "SACLagLoss takes one with"
            )
        super().__init__(
            policy,
            reward_critic,
            cost_critic,
            multiplier,
            reward_aggregate=reward_aggregate,
            cost_aggregate=cost_aggregate,
            std_coef=std_coef,
            normalise=normalise,
            augmentation=augmentation,
            q_cost_limit=q_cost_limit,
            target_policy=True,
        )

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries returned."""
        return ["loss_actor", "q_reward", "q_cost", "lam", "lam_effective"]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss of a batch; see the class for the entries returned."""
        with swapped(self.policy, self.policy_params):
            action = self.policy(tensordict.select(*self.policy.in_keys))[self.tensor_keys.action]
        penalised = self.penalised_value(tensordict[self.tensor_keys.observation], action)
        return TensorDict({"loss_actor": -penalised.value.mean() / penalised.scale, **penalised.terms}, [])
