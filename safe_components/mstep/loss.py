"""The M-step: fit the Gaussian policy to the weighted particles by maximum likelihood near the old policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from safe_components import keys
from safe_components.mstep.moments import joint_log_likelihood
from safe_components.mstep.objective import OldPolicy, decoupled_terms, log_diag
from safe_components.mstep.trust_region import TrustRegionTerms
from safe_components.ops import network_outputs, single_network, swapped

Likelihood = Literal["decoupled", "joint"]


class MStepLoss(LossModule):
    """Weighted maximum likelihood of a Gaussian policy inside a trust region around the old one.

        max_θ mean_b Σ_k q_bk [log N(a_bk; μ_θ, Σ_old) + log N(a_bk; μ_old, Σ_θ)]
        s.t.  C_μ = mean_b ½ (μ_θ-μ_old)ᵀ Σ_old⁻¹ (μ_θ-μ_old)                ≤ ε_μ
              C_Σ = mean_b ½ [log|Σ_θ|/|Σ_old| - a + tr(Σ_θ⁻¹ Σ_old)]        ≤ ε_Σ

    in each state ``s_b`` for ``K`` actions ("particles") with the weights ``q`` of the E-step. How the
    constraints are kept is the ``trust_region``'s business: hard (multipliers), soft (penalties) or none.
    The likelihood is a *sum* over ``k``. Codes that average over ``k`` instead scale it by ``1/K``
    against the divergences: their multipliers and penalties times ``K`` are ours.

    With ``likelihood="joint"`` the objective is ``mean_b Σ_k q_bk log N(a_bk; μ_θ, Σ_θ)``. The decoupled one
    (the default, with every trust region) fits the covariance to the spread about the *old* mean, so that
    a moving mean does not shrink the exploration; its unrestricted optimum is
    ``μ = E_q a``, ``Σ = E_q (a-μ_old)(a-μ_old)ᵀ``, the joint one's ``Σ = Cov_q a``, which may collapse.

    The old policy (π_old) is held in ``target_policy_params`` and never receives a gradient: attach
    ``SoftUpdate`` for a Polyak average or ``HardUpdate`` for a copy every so often. Where the particles
    come with the Gaussian they were drawn from (``("particles", "loc")``, ``("particles", "scale_tril")``)
    that one is the old policy of these states and no second forward pass is made.

    Particles enter through their first two moments, computed once per set of particles (the steps that
    follow on the same tensors use them again) and without gradient; the rest is two triangular solves of
    ``[B, a, a]`` and two more for the gradient. No determinant and no inverse is formed.

    Reads ``observation`` (what the policy reads), ``("particles", "action") [B, K, a]``,
    ``("particles", "weight") [B, K]``; renamed with ``set_keys``. Returns scalars, all but the losses
    detached:

    | entry | |
    |---|---|
    | ``loss_policy`` | ``-likelihood + α_μ C_μ + α_Σ C_Σ``; moves the policy only |
    | ``loss_trust_region`` | dual loss; moves the multipliers only, zero if there are none |
    | ``kl_mean``, ``kl_cov`` | ``C_μ``, ``C_Σ``, nats |
    | ``alpha_mean``, ``alpha_cov`` | multipliers or penalty weights |
    | ``alpha_capped`` | whether a multiplier has reached its cap |
    | ``log_likelihood_mean``, ``log_likelihood_cov`` | the two decoupled terms, nats (both always) |
    | ``log_likelihood`` | the term maximised: their sum, or the joint one |
    | ``entropy`` | mean entropy of the policy, nats |

    Args:
        policy: TorchRL actor that writes ``loc [B, a]`` and ``scale_tril [B, a, a]``, as `gaussian_policy`.
        trust_region: `HardTrustRegion`, `SoftTrustRegion`, `NoTrustRegion` or a module
            ``(C_μ, C_Σ) -> TrustRegionTerms``.
        likelihood: ``"decoupled"`` or ``"joint"``.
        check_weights: raise if the weights of a state do not sum to 1 within 1e-3. None checks on the CPU
            only, where it costs no device synchronisation.

    Raises:
        ValueError: if ``likelihood`` is unknown; in ``forward``, if shapes do not fit or the weights
            do not sum to 1.
        KeyError: in ``forward``, if the policy does not write ``loc`` and ``scale_tril``.

    Source: CVPO (Liu et al. 2022, arXiv 2201.11927), M-step; the decoupling is MPO's (Abdolmaleki et al.
    2018, arXiv 1812.02256).

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.objectives import SoftUpdate
        >>> from safe_components.mstep import HardTrustRegion
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import ProbabilisticActor
        >>> class Net(torch.nn.Linear):
        ...     def forward(self, observation):
        ...         return super().forward(observation), torch.eye(2).expand(len(observation), 2, 2)
        >>> policy = ProbabilisticActor(
        ...     TensorDictModule(Net(3, 2), ["observation"], ["loc", "scale_tril"]),
        ...     in_keys=["loc", "scale_tril"],
        ...     distribution_class=torch.distributions.MultivariateNormal,
        ... )
        >>> loss = MStepLoss(policy, HardTrustRegion(kl_mean=0.01, kl_cov=0.001))
        >>> old_policy_updater = SoftUpdate(loss, tau=0.005)
        >>> q = torch.full((5, 8), 1 / 8)
        >>> particles = TensorDict(action=torch.randn(5, 8, 2), weight=q, batch_size=5)
        >>> batch = TensorDict(observation=torch.randn(5, 3), particles=particles, batch_size=5)
        >>> out = loss(batch)
        >>> (out["loss_policy"] + out["loss_trust_region"]).backward()
        >>> out["kl_mean"], out["kl_cov"], out["alpha_mean"]
        (tensor(0.), tensor(0.), tensor(1.))
    """

    @dataclass
    class _AcceptedKeys:
        loc: NestedKey = keys.LOC
        scale_tril: NestedKey = keys.SCALE_TRIL
        particle_action: NestedKey = keys.PARTICLE_ACTION
        particle_weight: NestedKey = keys.PARTICLE_WEIGHT
        particle_loc: NestedKey = keys.PARTICLE_LOC
        particle_scale_tril: NestedKey = keys.PARTICLE_SCALE_TRIL

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    policy: ProbabilisticTensorDictSequential
    policy_params: TensorDictParams
    target_policy_params: TensorDictParams

    def __init__(
        self,
        policy: ProbabilisticTensorDictSequential,
        trust_region: nn.Module,
        *,
        likelihood: Likelihood = "decoupled",
        check_weights: bool | None = None,
    ) -> None:
        super().__init__()
        if likelihood not in get_args(Likelihood):
            raise ValueError(f"likelihood={likelihood!r} is not one of {', '.join(get_args(Likelihood))}")
        self.likelihood, self.check_weights = likelihood, check_weights
        self.convert_to_functional(policy, "policy", create_target_params=True)
        self.trust_region = trust_region
        self.__dict__["_network"] = single_network(policy)  # a part of the policy, no child of its own
        self._in_place = self._holds_own_parameters()
        self._last: tuple[list[tuple[Tensor, int]], OldPolicy] | None = None

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read in every call; the old Gaussian of the particles is optional and not among them."""
        names = self.tensor_keys
        return [*self.policy.in_keys, names.particle_action, names.particle_weight]

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries returned."""
        return [
            "loss_policy",
            "loss_trust_region",
            "kl_mean",
            "kl_cov",
            "alpha_mean",
            "alpha_cov",
            "alpha_capped",
            "log_likelihood_mean",
            "log_likelihood_cov",
            "log_likelihood",
            "entropy",
        ]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """No value estimator is involved."""

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses of a batch; see the class for the entries read and returned."""
        loc, scale_tril = self._gaussian(self.policy_params, tensordict)
        with torch.no_grad():
            old = self._old_policy(tensordict, loc)
        fit_mean, fit_cov, kl_mean, kl_cov, entropy = decoupled_terms(old, loc, scale_tril)
        if self.likelihood == "decoupled":
            fit = fit_mean + fit_cov
        else:
            shift = _solve(old.scale_tril, (loc - old.loc).unsqueeze(-1)).squeeze(-1)
            ratio = _solve(scale_tril, old.scale_tril)
            fit = joint_log_likelihood(old.moments, shift, ratio, log_diag(scale_tril)).mean()
        terms: TrustRegionTerms = self.trust_region(kl_mean, kl_cov)
        return TensorDict(
            {
                "loss_policy": terms.penalty - fit,
                "loss_trust_region": terms.dual_loss,
                "kl_mean": kl_mean.detach(),
                "kl_cov": kl_cov.detach(),
                "alpha_mean": terms.alpha_mean,
                "alpha_cov": terms.alpha_cov,
                "alpha_capped": terms.capped,
                "log_likelihood_mean": fit_mean.detach(),
                "log_likelihood_cov": fit_cov.detach(),
                "log_likelihood": fit.detach(),
                "entropy": entropy,
            },
            [],
        )

    def _holds_own_parameters(self) -> bool:
        """Whether the network computes with the memory of ``policy_params``: nothing to swap then."""
        network = TensorDict.from_module(self.policy)
        return all(
            key in network.keys(True, True)
            and (tensor.data_ptr(), tensor.dtype) == (network[key].data_ptr(), network[key].dtype)
            for key, tensor in self.policy_params.items(True, True)
        )

    def _apply(self, *args: Any, **kwargs: Any) -> MStepLoss:
        """Move or cast; the network may be left behind."""
        super()._apply(*args, **kwargs)
        self._in_place = self._holds_own_parameters()
        return self

    def _gaussian(self, params: TensorDictParams, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``loc`` and ``scale_tril`` of the policy with these parameters; writes nothing to the input."""
        if self._network is not None:
            own = self._in_place and params is self.policy_params
            outputs = network_outputs(self._network, tensordict, None if own else params)
        else:
            with swapped(self.policy, params):
                outputs = self.policy.get_dist_params(tensordict.select(*self.policy.in_keys))
        names = self.tensor_keys
        loc, scale_tril = outputs.get(names.loc, None), outputs.get(names.scale_tril, None)
        if loc is None or scale_tril is None:
            raise KeyError(f"the policy must write {names.loc!r} and {names.scale_tril!r} (see set_keys)")
        return loc, scale_tril

    def _old_policy(self, tensordict: TensorDictBase, loc: Tensor) -> OldPolicy:
        """The old policy and the particles' moments; kept while the batch's tensors are the same."""
        names = self.tensor_keys
        old_loc = tensordict.get(names.particle_loc, None)
        old_tril = tensordict.get(names.particle_scale_tril, None)
        if old_loc is None or old_tril is None:
            old_loc, old_tril = self._gaussian(self.target_policy_params, tensordict)
        tensors = old_loc, old_tril, tensordict[names.particle_action], tensordict[names.particle_weight]
        # Changes in place count: every one of them raises a tensor's version.
        stamp = [(tensor, tensor._version) for tensor in tensors]
        if self._last is not None and all(
            new is seen and version == then
            for (new, version), (seen, then) in zip(stamp, self._last[0], strict=True)
        ):
            return self._last[1]
        self._check(*tensors[2:], loc, *tensors[:2])
        old = OldPolicy.of(*(tensor.detach() for tensor in tensors))
        self._last = (stamp, old)
        return old

    def _check(
        self, action: Tensor, weight: Tensor, loc: Tensor, loc_old: Tensor, scale_tril_old: Tensor
    ) -> None:
        lead, size = loc.shape[:-1], loc.shape[-1]
        if (
            action.ndim != loc.ndim + 1
            or action.shape[:-2] != lead
            or action.shape[-1] != size
            or weight.shape != action.shape[:-1]
        ):
            raise ValueError(
                f"particles of shape action [..., K, a], weight [..., K] are needed for a policy with loc "
                f"{tuple(loc.shape)}, got {tuple(action.shape)} and {tuple(weight.shape)}"
            )
        if loc_old.shape != loc.shape or scale_tril_old.shape != (*loc.shape, size):
            raise ValueError(
                f"the old policy's loc {tuple(loc_old.shape)} and scale_tril {tuple(scale_tril_old.shape)} "
                f"do not fit the policy's loc {tuple(loc.shape)}"
            )
        check = self.check_weights if self.check_weights is not None else weight.device.type == "cpu"
        if check:
            error = float((weight.sum(-1) - 1.0).abs().max())
            if not error <= 1e-3:  # also catches NaN
                raise ValueError(
                    f"the particles' weights must sum to 1 in every state, they miss it by up to "
                    f"{error:.3g}; run the E-step first or normalise them"
                )


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(lower, right, upper=False)
