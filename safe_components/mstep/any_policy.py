"""The M-step of any policy with a distribution: weighted maximum likelihood near the old policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, kl_divergence
from torchrl.modules import OneHotCategorical

from safe_components import keys
from safe_components.mstep.trust_region import TrustRegionTerms
from safe_components.ops import BaseLoss, Reduction, has_distribution, reduced, require_states, swapped

# Entries of what `WeightedLikelihoodLoss.prepare` returns.
_STATE, _OLD_POLICY, _OLD_LOG_PROB = "state", "old_policy", "old_log_prob"
_ACTION, _WEIGHT = "action", "weight"


class WeightedLikelihoodLoss(BaseLoss):
    """Weighted maximum likelihood of any policy inside a trust region around the old one.

        max_θ mean_b Σ_k q_bk log π_θ(a_bk | s_b)   s.t.   mean_b KL(π_old(·|s_b) ‖ π_θ(·|s_b)) ≤ ε

    This is the M-step for squashed Gaussians, mixtures, categorical policies and every other actor with a
    ``log_prob``. For a plain Gaussian, `MStepLoss` is faster and bounds mean and covariance separately; its
    ``likelihood="joint"`` is this objective.

    The divergence has the closed form that PyTorch registers for the pair of distributions. Where none is
    registered, it is estimated from the ``K`` particles, which must then be samples of the old policy:

        KL ≈ mean_k [ρ_k - 1 - log ρ_k],     ρ_k = π_θ(a_bk | s_b) / π_old(a_bk | s_b)

    The estimate is unbiased, as is its gradient, and never negative.

    The old policy is held in ``target_policy_params`` and never receives a gradient, as in `MStepLoss`.
    `prepare` runs it once for all gradient steps on one set of particles. A call on a plain batch prepares it
    first, every time.

    Reads ``observation`` (or whatever the policy reads), ``("particles", "action") [B, K, ...]`` and
    ``("particles", "weight") [B, K]``; ``set_keys`` renames the particles. Returns scalars; all but the
    losses are detached:

    | entry | |
    |---|---|
    | ``loss_policy`` | ``-likelihood + α KL``; moves the policy only |
    | ``loss_trust_region`` | dual loss; moves the multiplier only, zero if there is none |
    | ``kl`` | the divergence, nats |
    | ``alpha`` | multiplier or penalty weight |
    | ``alpha_capped`` | whether the multiplier has reached its cap |
    | ``log_likelihood`` | the likelihood, nats |
    | ``entropy`` | mean entropy of the policy, nats |

    The entropy, too, has its closed form where PyTorch knows one, and is otherwise the estimate
    ``-mean_k ρ_k log π_θ(a_bk | s_b)``.

    Args:
        policy: TorchRL actor whose ``get_dist`` returns a distribution with ``log_prob``.
        trust_region: `HardTrustRegion`, `SoftTrustRegion`, `NoTrustRegion` or a module
            ``(KL, 0) -> TrustRegionTerms``. The bound and the multiplier of the mean apply to the whole
            divergence; those of the covariance have nothing to bound.
        sampled_kl: estimate the divergence from the particles even if a closed form is known.
        reduction: of ``loss_policy`` over the states, as in `MStepLoss`.

    Raises:
        TypeError: if the policy has no distribution.
        ValueError: if ``reduction`` is unknown; in ``forward``, if shapes do not fit, the batch is empty, or
            the loss is not finite.

    Source: the parametric M-step of MPO (Abdolmaleki et al. 2018, arXiv 1806.06920); the estimate of the
    divergence is the k3 of Schulman 2020, "Approximating KL divergence".

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal
        >>> from torchrl.objectives import SoftUpdate
        >>> from safe_components.mstep import HardTrustRegion
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), NormalParamExtractor())
        >>> policy = ProbabilisticActor(
        ...     TensorDictModule(net, ["observation"], ["loc", "scale"]),
        ...     in_keys=["loc", "scale"],
        ...     distribution_class=TanhNormal,
        ... )
        >>> loss = WeightedLikelihoodLoss(policy, HardTrustRegion(kl_mean=0.01, kl_cov=0.01))
        >>> old_policy_updater = SoftUpdate(loss, tau=0.005)
        >>> states = TensorDict(observation=torch.randn(5, 3), batch_size=5)
        >>> action = policy.get_dist(states).sample((8,)).movedim(0, 1)
        >>> particles = TensorDict(action=action, weight=torch.full((5, 8), 1 / 8), batch_size=5)
        >>> out = loss(states.set("particles", particles))
        >>> (out["loss_policy"] + out["loss_trust_region"]).backward()
        >>> out["kl"], out["alpha"]
        (tensor(0.), tensor(1.))
    """

    @dataclass
    class _AcceptedKeys:
        particle_action: NestedKey = keys.PARTICLE_ACTION
        particle_weight: NestedKey = keys.PARTICLE_WEIGHT

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    #: PyTorch's distributions may read numbers from the device, as some closed forms of a divergence do.
    synchronizes = True
    #: Entries with the divergences that the trust region bounds.
    divergences: ClassVar[tuple[str, ...]] = ("kl",)
    policy: ProbabilisticTensorDictSequential
    policy_params: TensorDictParams
    target_policy_params: TensorDictParams

    def __init__(
        self,
        policy: ProbabilisticTensorDictSequential,
        trust_region: nn.Module,
        *,
        sampled_kl: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if not has_distribution(policy):
            raise TypeError(f"policy must have a distribution (get_dist), got a {type(policy).__name__}")
        self.sampled_kl = sampled_kl
        self.convert_to_functional(policy, "policy", create_target_params=True)
        self.trust_region = trust_region
        self.out_keys = [
            "loss_policy",
            "loss_trust_region",
            "kl",
            "alpha",
            "alpha_capped",
            "log_likelihood",
            "entropy",
        ]

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that a batch must have."""
        return [*self.policy.in_keys, self.tensor_keys.particle_action, self.tensor_keys.particle_weight]

    def prepare(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute what the gradient steps on one set of particles share.

        Args:
            tensordict: a batch; see the class for the entries read.

        Returns:
            For `forward` alone: what the policy reads, the particles, and the old policy. The entries do not
            follow later changes of ``target_policy_params``.
        """
        action = tensordict[self.tensor_keys.particle_action]
        weight = tensordict[self.tensor_keys.particle_weight]
        require_states(weight.shape[:-1], "the batch of particles")
        if action.shape[: weight.ndim] != weight.shape:
            raise ValueError(
                f"particles of shape action [B, K, ...] and weight [B, K] are needed, got "
                f"{tuple(action.shape)} and {tuple(weight.shape)}"
            )
        inputs = tensordict.select(*self.policy.in_keys)
        with torch.no_grad(), swapped(self.policy, self.target_policy_params):
            parameters = self.policy.get_dist_params(inputs.copy())  # it writes into its argument
            old_log_prob = _log_prob(self.policy.build_dist_from_params(parameters), action)
        entries = {_STATE: inputs, _OLD_POLICY: parameters, _OLD_LOG_PROB: old_log_prob}
        return TensorDict({**entries, _ACTION: action, _WEIGHT: weight}, [])

    @dispatch  # type: ignore[untyped-decorator]  # TensorDict's
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses.

        Args:
            tensordict: what `prepare` returned, or a batch, which is then prepared first.

        Returns:
            The entries that the class lists.
        """
        if tensordict.get(_OLD_POLICY, None) is None:
            tensordict = self.prepare(tensordict)
        inputs, action, weight = (tensordict.get(key) for key in (_STATE, _ACTION, _WEIGHT))
        with swapped(self.policy, self.policy_params):
            new = self.policy.get_dist(inputs.copy())
            log_prob = _log_prob(new, action)
        likelihood = (weight * log_prob).sum(-1)
        log_ratio = log_prob - tensordict.get(_OLD_LOG_PROB)
        kl = self._divergence(tensordict.get(_OLD_POLICY), new, log_ratio).mean()
        terms: TrustRegionTerms = self.trust_region(kl, torch.zeros_like(kl))
        loss = terms.penalty - likelihood
        if not torch.compiler.is_compiling() and loss.device.type == "cpu" and not loss.isfinite().all():
            raise ValueError(
                f"loss_policy is not finite: the {type(new).__name__} of the policy gives its particles log "
                f"probabilities between {float(log_prob.min()):.3g} and {float(log_prob.max()):.3g}"
            )
        return TensorDict(
            {
                "loss_policy": reduced(loss, self.reduction),
                "loss_trust_region": terms.dual_loss,
                "kl": kl.detach(),
                "alpha": terms.alpha_mean,
                "alpha_capped": terms.capped,
                "log_likelihood": likelihood.detach().mean(),
                "entropy": _entropy(new, log_prob.detach(), log_ratio.detach()),
            },
            [],
        )

    def _divergence(self, old_params: TensorDictBase, new: Distribution, log_ratio: Tensor) -> Tensor:
        """``KL(π_old ‖ π_θ) [B]``."""
        if not self.sampled_kl:
            try:
                return kl_divergence(self.policy.build_dist_from_params(old_params), new)
            except NotImplementedError:
                pass  # no closed form is registered
        return (log_ratio.expm1() - log_ratio).mean(-1)


def _entropy(dist: Distribution, log_prob: Tensor, log_ratio: Tensor) -> Tensor:
    """Mean entropy ``[]``; ``log_prob`` and ``log_ratio`` ``[B, K]`` are those of the particles."""
    try:
        return dist.entropy().detach().mean()
    except NotImplementedError:  # no closed form
        return -(log_ratio.exp() * log_prob).mean()


def _log_prob(dist: Distribution, action: Tensor) -> Tensor:
    """``log π(a_bk | s_b) [B, K]`` of actions ``[B, K, ...]``."""
    if isinstance(dist, Categorical) and not isinstance(dist, OneHotCategorical):
        action = action.squeeze(-1) if action.ndim > len(dist.batch_shape) + 1 else action
    log_prob: Tensor = dist.log_prob(action.movedim(len(dist.batch_shape), 0))
    return log_prob.movedim(0, -1)
