"""The actor loss of SAC-Lag: soft actor-critic whose reward is charged for the costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules.distributions.utils import rsample_and_log_prob

from safe_components.lagrangian.actor_loss import LagrangianActorLoss
from safe_components.ops import Aggregate, swapped


class SACLagLoss(LagrangianActorLoss):
    """Soft policy improvement on the Lagrangian, and the temperature that keeps an entropy.

        min_π  mean_b [ α log π(a|s) - agg_e Q_r(s, a) + Σ_i λ_i agg_e Q_c,i(s, a) ] / (1 + Σ_i λ_i)
        min_α  -log α · mean_b [ log π(a|s) + H ],                         a ~ π(s) reparametrised

    The critics' parameters and ``λ`` are constants here: `TDLoss` learns the former, episodes move the
    latter. Dividing by ``1 + Σλ`` keeps the gradient's size when ``λ`` grows; a given ``λ`` has the same
    minimiser with and without.
    With ``λ = 0`` this is TorchRL's ``SACLoss``, actor and temperature.

    Args:
        policy: TorchRL actor with a distribution, as `tanh_gaussian_policy`.
        reward_critic: module ``(observation [B, o], action [B, a]) -> [E, B, 1]``, as `QEnsemble`.
        cost_critic: the same, ``[E, B, m]``.
        multiplier: callable that returns ``λ [m]``, as `GradientMultiplier` and `PIDMultiplier`.
        reward_aggregate: how members become one: ``"min"``, ``"mean"``, ``"max"``, ``"first"``,
            ``"conservative"`` (mean + ``std_coef`` standard deviations).
        cost_aggregate: likewise for every cost.
        std_coef: see ``reward_aggregate``.
        target_entropy: ``H`` in nats of the action's own density; ``"auto"`` is ``-a``, made for ranges of
            [-1, 1] (add ``Σ log(half-range)`` for others); None keeps ``α`` at ``init_alpha``.
        init_alpha: first temperature ``α``, reward per nat.
        normalise: divide by ``1 + Σλ``.
        augmentation: ``c`` of CAL's augmented Lagrangian, which puts `augmented_multiplier` in the place
            of ``λ``; 0 is off.
        q_cost_limit: ``d_Q [m]``, the limits in the critics' unit; needed by ``augmentation``.

    Attributes:
        policy_params: the actor's parameters.
        log_alpha: ``log α``, a parameter (a buffer if ``target_entropy`` is None).

    Returns:
        From ``forward``, a TensorDict without batch size, all but the losses detached:

        | entry | shape | |
        |---|---|---|
        | ``loss_actor`` | [] | moves the policy only |
        | ``loss_alpha`` | [] | moves ``log_alpha`` only |
        | ``alpha`` | [] | temperature |
        | ``entropy`` | [] | ``-mean_b log π``, nats |
        | ``q_reward`` | [] | mean aggregated value of the policy's actions, discounted reward |
        | ``q_cost`` | [m] | likewise, discounted costs |
        | ``lam`` | [m] | the multipliers |
        | ``lam_effective`` | [m] | what multiplied the costs: ``lam``, or `augmented_multiplier` |

    Raises:
        ValueError: if a setting is out of range; in ``forward``, if the critics' outputs, the
            multiplier and the limits do not have the same number of costs.

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
        ...         return action.square().sum(-1, keepdim=True).unsqueeze(0)
        >>> loss = SACLagLoss(actor, Critic(), Critic(), lambda: torch.tensor([1.0]))
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
        reward_critic: nn.Module,
        cost_critic: nn.Module,
        multiplier: Callable[[], Tensor],
        *,
        reward_aggregate: Aggregate = "min",
        cost_aggregate: Aggregate = "mean",
        std_coef: float = 0.5,
        target_entropy: float | Literal["auto"] | None = "auto",
        init_alpha: float = 1.0,
        normalise: bool = True,
        augmentation: float = 0.0,
        q_cost_limit: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        if not hasattr(policy, "get_dist"):
            raise ValueError(
                f"SACLagLoss needs a policy with a distribution (get_dist), got a {type(policy).__name__}; "
                "DeterministicLagLoss takes one without"
            )
        if not 0.0 < init_alpha < math.inf:
            raise ValueError(f"init_alpha={init_alpha} must be positive and finite")
        if isinstance(target_entropy, str) and target_entropy != "auto":
            raise ValueError(f"target_entropy={target_entropy!r} must be a number, 'auto' or None")
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
            target_policy=False,
        )
        self.target_entropy = target_entropy
        log_alpha = torch.tensor(math.log(init_alpha))
        if target_entropy is None:
            self.register_buffer("log_alpha", log_alpha)
        else:
            self.register_parameter("log_alpha", nn.Parameter(log_alpha))

    @property
    def alpha(self) -> Tensor:
        """``α []``, detached; a soft `TDLoss` takes it as ``entropy_coef=lambda: loss.alpha``."""
        return self.log_alpha.detach().exp()

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries returned."""
        own = ["loss_actor", "loss_alpha", "alpha", "entropy"]
        return [*own, "q_reward", "q_cost", "lam", "lam_effective"]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses of a batch; see the class for the entries returned."""
        with swapped(self.policy, self.policy_params):
            dist = self.policy.get_dist(tensordict.select(*self.policy.in_keys))
        # Scored where it was drawn: inverting a saturated tanh would lose the draw.
        action, log_prob = rsample_and_log_prob(dist)
        penalised = self.penalised_value(tensordict[self.tensor_keys.observation], action)
        objective = self.alpha * log_prob - penalised.value
        mean_log_prob = log_prob.detach().mean()
        if self.target_entropy is None:
            loss_alpha = torch.zeros_like(mean_log_prob)
        else:
            target = -float(action.shape[-1]) if self.target_entropy == "auto" else self.target_entropy
            loss_alpha = -self.log_alpha * (mean_log_prob + target)
        return TensorDict(
            {
                "loss_actor": objective.mean() / penalised.scale,
                "loss_alpha": loss_alpha,
                "alpha": self.alpha,
                "entropy": -mean_log_prob,
                **penalised.terms,
            },
            [],
        )
