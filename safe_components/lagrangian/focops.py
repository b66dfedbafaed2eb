"""Policy loss of FOCOPS: first-order constrained optimization in policy space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributions import kl_divergence

from safe_components import keys
from safe_components.ops import BaseLoss, Reduction, has_distribution, reduced, require_states, swapped


class FOCOPSLoss(BaseLoss):
    """Fit of a policy to the best distribution near the old policy, from the old policy's own actions.

        π*(a|s) ∝ π_old(a|s) exp(A(s, a) / β)
        min_θ  mean_b 1[KL_b ≤ δ] (KL_b - r_b A_b / β)        KL_b = KL(π_θ(·|s_b) ‖ π_old(·|s_b))

    with the ratio ``r_b = π_θ(a_b|s_b) / π_old(a_b|s_b)``. The gradient is that of
    ``KL(π_θ ‖ π*)`` over the states whose policy is still inside the bound ``δ``. The advantage ``A`` already
    holds the costs, ``A = A_r - Σ_i λ_i A_c,i`` with a multiplier that follows the episodes.

    Where PyTorch registers no closed form for the divergence, the action of each state is its one sample:
    ``KL_b ≈ r_b log r_b - r_b + 1``, which is unbiased and never negative.

    The old policy is held in ``target_policy_params`` and never receives a gradient. Copy the policy into it
    (`safe_components.critics.Copy`) before the updates on a batch.

    Args:
        policy: TorchRL actor with a distribution.
        temperature: ``β``, in the unit of the advantage, positive.
        max_kl: ``δ``, bound on the divergence of a state, in nats, positive.
        reduction: ``"mean"`` over the states, ``"sum"``, or ``"none"`` for the loss of each state ``[B]``.

    Returns:
        From ``forward``, a TensorDict without batch size. All entries but the loss are detached:

        | entry | shape | |
        |---|---|---|
        | ``loss_policy`` | [] | moves the policy |
        | ``kl`` | [] | mean divergence over all states, nats |
        | ``kept_fraction`` | [] | share of the states inside the bound |

    Raises:
        ValueError: if an argument is out of range or the policy has no distribution; in ``forward``, if the
            batch is empty or the advantage is not ``[B, 1]``.

    Source: Zhang, Vuong and Ross 2020, "First order constrained optimization in policy space", arXiv
    2002.06506, theorem 1 and algorithm 1, with ``β`` for its ``λ``. The defaults are those of the paper, for
    advantages in standard deviations.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from safe_components.critics import Copy
        >>> from safe_components.policies import gaussian_policy
        >>> _ = torch.manual_seed(0)
        >>> policy = gaussian_policy(3, [-1.0], [1.0])
        >>> loss = FOCOPSLoss(policy)
        >>> old = Copy(loss)
        >>> batch = policy(TensorDict(observation=torch.randn(5, 3), batch_size=5))
        >>> batch["advantage"] = torch.ones(5, 1)
        >>> out = loss(batch)
        >>> out["loss_policy"].backward()
        >>> out["loss_policy"].detach(), out["kept_fraction"]  # at the old policy: -A / β
        (tensor(-0.6667), tensor(1.))
    """

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = keys.ACTION
        advantage: NestedKey = "advantage"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    policy: ProbabilisticTensorDictSequential
    policy_params: TensorDictParams
    target_policy_params: TensorDictParams

    def __init__(
        self,
        policy: ProbabilisticTensorDictSequential,
        *,
        temperature: float = 1.5,
        max_kl: float = 0.02,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if not has_distribution(policy):
            raise ValueError(f"FOCOPSLoss needs a policy with a distribution, got a {type(policy).__name__}")
        for name, value in (("temperature", temperature), ("max_kl", max_kl)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        self.temperature, self.max_kl = temperature, max_kl
        self.convert_to_functional(policy, "policy", create_target_params=True)
        self.out_keys = ["loss_policy", "kl", "kept_fraction"]

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read."""
        return [*self.policy.in_keys, self.tensor_keys.action, self.tensor_keys.advantage]

    @dispatch  # type: ignore[untyped-decorator]  # TensorDict's
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss of a batch; see the class for the entries read and returned."""
        action, advantage = tensordict[self.tensor_keys.action], tensordict[self.tensor_keys.advantage]
        require_states(action.shape[:-1], "action")
        if advantage.shape != (*action.shape[:-1], 1):
            raise ValueError(
                f"advantage must have the shape {(*action.shape[:-1], 1)}, got {tuple(advantage.shape)}"
            )
        inputs = tensordict.select(*self.policy.in_keys)
        with torch.no_grad(), swapped(self.policy, self.target_policy_params):
            old = self.policy.get_dist(inputs)
            log_prob = old.log_prob(action)
        with swapped(self.policy, self.policy_params):
            new = self.policy.get_dist(inputs)
            log_ratio = new.log_prob(action) - log_prob
        ratio = log_ratio.exp()
        kl: Tensor
        try:
            kl = kl_divergence(new, old)
        except NotImplementedError:  # no closed form is registered
            kl = ratio * log_ratio - ratio + 1
        kept = (kl.detach() <= self.max_kl).to(kl)
        loss = kept * (kl - ratio * advantage.squeeze(-1).detach() / self.temperature)
        return TensorDict(
            {
                "loss_policy": reduced(loss, self.reduction),
                "kl": kl.detach().mean(),
                "kept_fraction": kept.mean(),
            },
            [],
        )
