"""Actor loss of SAC-Lag: soft policy improvement that is charged for the costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch
from torch import Tensor, nn
from torchrl.modules.distributions.utils import rsample_and_log_prob

from safe_components.lagrangian.actor_loss import LagrangianActorLoss
from safe_components.ops import Aggregate, Reduction, has_distribution, reduced, require_states, swapped


class SACLagLoss(LagrangianActorLoss):
    """Soft policy improvement on the Lagrangian, with a temperature that keeps the entropy at a target.

        min_π  mean_b [ α log π(a|s) - agg_e Q_r(s, a) + Σ_i λ_i agg_e Q_c,i(s, a) ] / (1 + Σ_i λ_i)
        min_α  -log α · mean_b [ log π(a|s) + H ],                         a ~ π(s), reparameterized

    The critic's parameters and ``λ`` are constants here: `TDLoss` learns the critic, and episodes move ``λ``.
    Division by ``1 + Σλ`` keeps the size of the gradient as ``λ`` grows; it does not change the minimizer for
    a given ``λ``. At ``λ = 0`` both losses are those of TorchRL's ``SACLoss``.

    Args:
        policy: TorchRL actor with a distribution, such as `tanh_gaussian_policy`.
        critic: module ``(observation [B, o], action [B, a]) -> (q_reward [E_r, B, 1], q_cost [E_c, B, m])``,
            such as `ConstrainedQEnsemble`.
        multiplier: callable that returns ``λ [m]``, such as `GradientMultiplier` or `PIDMultiplier`.
        reward_aggregate: how the members become one value: ``"min"``, ``"mean"``, ``"max"``, ``"first"``,
            ``"conservative"`` (mean + ``std_coef`` standard deviations).
        cost_aggregate: likewise for every cost.
        std_coef: weight of the standard deviation in ``"conservative"``.
        target_entropy: ``H`` in nats, of the density of the action itself. ``"auto"`` is ``-a``, meant for
            ranges of [-1, 1] (add ``Σ log(half-range)`` for others). None keeps ``α`` at ``init_alpha``.
        init_alpha: initial temperature ``α``, reward per nat.
        normalize: divide by ``1 + Σλ``, or with a price by ``1 + Σθ``.
        augmentation: ``c`` of CAL's augmented Lagrangian, which replaces ``λ`` by `augmented_multiplier`;
            0 turns it off.
        q_cost_limit: ``d_Q [m]``, the limits in the critic's unit, needed by ``augmentation``. A tensor
            ``[m]``, such as `CostBudget.q_limit`, is shared, so changes in place take effect.
        in_spreads: whether the multiplier is a price ``θ`` without unit. Then ``λ_i = θ_i s_r / s_i``, with
            the root mean squares ``s`` of ``‖∂Q/∂a‖`` over the batch, which are to first order the spreads
            over the actions of a state. At ``θ = 1`` a cost pushes the actions as hard as the reward.
        reduction: ``"mean"`` over the states, ``"sum"``, or ``"none"`` for the losses of each state ``[B]``.

    Attributes:
        policy_params: the actor's parameters.
        log_alpha: ``log α``, a parameter (a buffer if ``target_entropy`` is None).

    Returns:
        From ``forward``, a TensorDict without batch size. All entries but the losses are detached:

        | entry | shape | |
        |---|---|---|
        | ``loss_actor`` | [] | moves the policy only |
        | ``loss_alpha`` | [] | moves ``log_alpha`` only |
        | ``alpha`` | [] | temperature |
        | ``entropy`` | [] | ``-mean_b log π``, nats |
        | ``q_reward`` | [] | mean aggregated value of the policy's actions, discounted reward |
        | ``q_cost`` | [m] | likewise, discounted costs |
        | ``lam`` | [m] | the multipliers |
        | ``lam_effective`` | [m] | the weights of the costs: ``lam``, or `augmented_multiplier` |

    Raises:
        ValueError: if a setting is out of range; in ``forward``, if the batch is empty, the critic does not
            return a pair, or the critic, the multiplier and the limits differ in the number of costs.

    Source: Haarnoja et al. 2018 (arXiv 1812.05905), eqs. 7 and 18, with a safety critic and multiplier as
    in Ha et al. 2020 (arXiv 2002.08550); augmentation and conservative critic, CAL (Wu et al. 2024,
    arXiv 2401.14758), with ``k = std_coef = 0.5`` and 4 members.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import NormalParamExtractor, TensorDictModule
        >>> from torchrl.modules import ProbabilisticActor, TanhNormal
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), NormalParamExtractor())
        >>> actor = ProbabilisticActor(
        ...     TensorDictModule(net, ["observation"], ["loc", "scale"]),
        ...     in_keys=["loc", "scale"],
        ...     distribution_class=TanhNormal,
        ... )
        >>> class Critic(torch.nn.Module):
        ...     def forward(self, observation, action):
        ...         q = action.square().sum(-1, keepdim=True).unsqueeze(0)
        ...         return q, q
        >>> loss = SACLagLoss(actor, Critic(), lambda: torch.tensor([1.0]))
        >>> out = loss(TensorDict(observation=torch.randn(5, 3), batch_size=5))
        >>> (out["loss_actor"] + out["loss_alpha"]).backward()
        >>> out["alpha"], out["lam"]
        (tensor(1.), tensor([1.]))
    """

    policy: ProbabilisticTensorDictSequential
    log_alpha: Tensor

    def __init__(
        self,
        policy: ProbabilisticTensorDictSequential,
        critic: nn.Module,
        multiplier: Callable[[], Tensor],
        *,
        reward_aggregate: Aggregate = "min",
        cost_aggregate: Aggregate = "mean",
        std_coef: float = 0.5,
        target_entropy: float | Literal["auto"] | None = "auto",
        init_alpha: float = 1.0,
        normalize: bool = True,
        augmentation: float = 0.0,
        q_cost_limit: float | Sequence[float] | Tensor | None = None,
        in_spreads: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        if not has_distribution(policy):
            raise ValueError(
                f"SACLagLoss needs a policy with a distribution (get_dist), got a {type(policy).__name__}; "
                "use DeterministicLagLoss for one without"
            )
        if not 0.0 < init_alpha < math.inf:
            raise ValueError(f"init_alpha={init_alpha} must be positive and finite")
        if isinstance(target_entropy, str) and target_entropy != "auto":
            raise ValueError(f"target_entropy={target_entropy!r} must be a number, 'auto' or None")
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
            target_policy=False,
            reduction=reduction,
        )
        self.out_keys = [
            "loss_actor",
            "loss_alpha",
            "alpha",
            "entropy",
            "q_reward",
            "q_cost",
            "lam",
            "lam_effective",
        ]
        self.target_entropy = target_entropy
        log_alpha = torch.tensor(math.log(init_alpha))
        if target_entropy is None:
            self.register_buffer("log_alpha", log_alpha)
        else:
            self.register_parameter("log_alpha", nn.Parameter(log_alpha))

    @property
    def alpha(self) -> Tensor:
        """``α []``, detached; pass it to a soft `TDLoss` as ``entropy_coef=lambda: loss.alpha``."""
        return self.log_alpha.detach().exp()

    @dispatch(auto_batch_size=False)  # type: ignore[untyped-decorator]  # tensordict has no types
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses of a batch; see the class for the entries returned."""
        observation = tensordict[self.tensor_keys.observation]
        require_states(observation.shape[:-1], "observation")
        with swapped(self.policy, self.policy_params):
            dist = self.policy.get_dist(tensordict.select(*self.policy.in_keys))
        # A draw is scored as it is made: inverting a saturated tanh afterwards would lose it.
        action, log_prob = rsample_and_log_prob(dist)
        penalized = self.penalized_value(observation, action)
        objective = self.alpha * log_prob - penalized.value
        constant = log_prob.detach()
        if self.target_entropy is None:
            loss_alpha = reduced(torch.zeros_like(constant), self.reduction)
        else:
            target = -float(action.shape[-1]) if self.target_entropy == "auto" else self.target_entropy
            loss_alpha = -self.log_alpha * reduced(constant + target, self.reduction)
        return TensorDict(
            {
                "loss_actor": reduced(objective, self.reduction) / penalized.scale,
                "loss_alpha": loss_alpha,
                "alpha": self.alpha,
                "entropy": -constant.mean(),
                **penalized.terms,
            },
            [],
        )
