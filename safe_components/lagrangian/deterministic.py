"""Actor loss of TD3-Lag and DDPG-Lag: a deterministic policy gradient that is charged for the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn

from safe_components.lagrangian.actor_loss import LagrangianActorLoss
from safe_components.ops import Aggregate, Reduction, has_distribution, reduced, swapped


class DeterministicLagLoss(LagrangianActorLoss):
    """Deterministic policy gradient on the Lagrangian.

        min_π  mean_b [ -agg_e Q_r(s, π(s)) + Σ_i λ_i agg_e Q_c,i(s, π(s)) ] / (1 + Σ_i λ_i)

    The critic's parameters and ``λ`` are constants here: `TDLoss` learns the critic, and episodes move ``λ``.
    Division by ``1 + Σλ`` keeps the size of the gradient as ``λ`` grows; it does not change the minimizer for
    a given ``λ``.

    ``target_policy_params`` holds the target actor of TD3 and DDPG: attach ``SoftUpdate``, and pass it to
    ``TDLoss(policy_params=...)``. At ``λ = 0`` this is the actor loss of TorchRL's ``TD3Loss`` (with
    ``reward_aggregate="first"``) and ``DDPGLoss`` (one member).

    Args:
        policy: actor without a distribution, such as `deterministic_policy`.
        critic: module ``(observation [B, o], action [B, a]) -> (q_reward [E_r, B, 1], q_cost [E_c, B, m])``,
            such as `ConstrainedQEnsemble`.
        multiplier: callable that returns ``λ [m]``, such as `GradientMultiplier` or `PIDMultiplier`.
        reward_aggregate: how the members become one value: ``"first"``, ``"min"``, ``"mean"``, ``"max"``,
            ``"conservative"`` (mean + ``std_coef`` standard deviations).
        cost_aggregate: likewise for every cost.
        std_coef: weight of the standard deviation in ``"conservative"``.
        normalize: divide by ``1 + Σλ``, or with a price by ``1 + Σθ``.
        augmentation: ``c`` of CAL's augmented Lagrangian, which replaces ``λ`` by `augmented_multiplier`;
            0 turns it off.
        q_cost_limit: ``d_Q [m]``, the limits in the critic's unit, needed by ``augmentation``. A tensor
            ``[m]``, such as `CostBudget.q_limit`, is shared, so changes in place take effect.
        in_spreads: whether the multiplier is a price ``θ`` without unit. Then ``λ_i = θ_i s_r / s_i``, with
            the root mean squares ``s`` of ``‖∂Q/∂a‖`` over the batch, which are to first order the spreads
            over the actions of a state. At ``θ = 1`` a cost pushes the actions as hard as the reward.
        reduction: ``"mean"`` over the states, ``"sum"``, or ``"none"`` for the loss of each state ``[B]``.

    Returns:
        From ``forward``, a TensorDict without batch size. All entries but the loss are detached:

        | entry | shape | |
        |---|---|---|
        | ``loss_actor`` | [] | moves the policy |
        | ``q_reward`` | [] | mean aggregated value of the policy's actions, discounted reward |
        | ``q_cost`` | [m] | likewise, discounted costs |
        | ``lam`` | [m] | the multipliers |
        | ``lam_effective`` | [m] | the weights of the costs: ``lam``, or `augmented_multiplier` |

    Raises:
        ValueError: if a setting is out of range; in ``forward``, if the batch is empty, the critic does not
            return a pair, or the critic, the multiplier and the limits differ in the number of costs.

    Source: DDPG, Lillicrap et al. 2016 (arXiv 1509.02971), eq. 6; TD3, Fujimoto et al. 2018 (arXiv
    1802.09477), algorithm 1; the Lagrangian as in Ray et al. 2019, "Benchmarking safe exploration".

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.objectives import SoftUpdate
        >>> class Critic(torch.nn.Module):
        ...     def forward(self, observation, action):
        ...         q = action.sum(-1, keepdim=True).unsqueeze(0)
        ...         return q, q
        >>> actor = TensorDictModule(torch.nn.Linear(3, 2), ["observation"], ["action"])
        >>> loss = DeterministicLagLoss(actor, Critic(), lambda: torch.tensor([1.0]))
        >>> target_updater = SoftUpdate(loss, tau=0.005)
        >>> out = loss(TensorDict(observation=torch.randn(5, 3), batch_size=5))
        >>> out["loss_actor"].abs().item()  # reward and cost cancel
        0.0
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        critic: nn.Module,
        multiplier: Callable[[], Tensor],
        *,
        reward_aggregate: Aggregate = "first",
        cost_aggregate: Aggregate = "mean",
        std_coef: float = 0.5,
        normalize: bool = True,
        augmentation: float = 0.0,
        q_cost_limit: float | Sequence[float] | Tensor | None = None,
        in_spreads: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        if has_distribution(policy):
            raise ValueError(
                f"DeterministicLagLoss needs a policy without a distribution, got a {type(policy).__name__}; "
                "use SACLagLoss for one with a distribution"
            )
        super().__init__(
            policy,
            critic,
            multiplier,
            reward_aggregate=reward_aggregate,
            cost_aggregate=cost_aggregate,
            std_coef=std_coef,
            normalize=normalize,
            augmentation=augmentation,
            q_cost_limit=q_cost_limit,
            in_spreads=in_spreads,
            target_policy=True,
            reduction=reduction,
        )
        self.out_keys = ["loss_actor", "q_reward", "q_cost", "lam", "lam_effective"]

    @dispatch(auto_batch_size=False)  # type: ignore[untyped-decorator]  # tensordict has no types
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss of a batch; see the class for the entries returned."""
        with swapped(self.policy, self.policy_params):
            action = self.policy(tensordict.select(*self.policy.in_keys))[self.tensor_keys.action]
        penalized = self.penalized_value(tensordict[self.tensor_keys.observation], action)
        return TensorDict(
            {"loss_actor": reduced(-penalized.value, self.reduction) / penalized.scale, **penalized.terms}, []
        )
