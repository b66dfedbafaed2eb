"""The M-step: fit the Gaussian policy to the weighted particles by maximum likelihood near the old policy."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from safe_components import keys
from safe_components.mstep._fused import (
    OldPolicy,
    combination,
    decoupled_terms,
    is_fusible,
    joint_log_likelihood,
    joint_term,
    state_terms,
)
from safe_components.mstep.likelihood import DecoupledTerms
from safe_components.mstep.trust_region import TrustRegionTerms
from safe_components.ops import (
    BaseLoss,
    Reduction,
    differentiated,
    network_outputs,
    require_states,
    single_network,
    squash_of,
    swapped,
    transformed,
)

Likelihood = Literal["decoupled", "joint"]
# Entries of what `MStepLoss.prepare` returns.
_STATE, _OLD_POLICY = "state", "old_policy"


class MStepLoss(BaseLoss):
    """Weighted maximum likelihood of a Gaussian policy inside a trust region around the old one.

        max_θ mean_b Σ_k q_bk [log N(a_bk; μ_θ, Σ_old) + log N(a_bk; μ_old, Σ_θ)]
        s.t.  C_μ = mean_b ½ (μ_θ-μ_old)ᵀ Σ_old⁻¹ (μ_θ-μ_old)                ≤ ε_μ
              C_Σ = mean_b ½ [log|Σ_θ|/|Σ_old| - a + tr(Σ_θ⁻¹ Σ_old)]        ≤ ε_Σ

    Each state ``s_b`` has ``K`` actions ("particles") with the weights ``q`` of the E-step. The
    ``trust_region`` decides how the constraints are kept: hard (multipliers), soft (penalties) or not at all.
    The likelihood is a *sum* over ``k``. Codes that average over ``k`` scale it by ``1/K`` against the
    divergences: multiply their multipliers and penalties by ``K`` to use them here.

    With ``likelihood="joint"`` the objective is ``mean_b Σ_k q_bk log N(a_bk; μ_θ, Σ_θ)``. Its unrestricted
    optimum is ``μ = E_q a``, ``Σ = Cov_q a``, which may collapse. The decoupled objective (the default) fits
    the covariance to the spread about the *old* mean, so a moving mean does not shrink the exploration. Its
    unrestricted optimum is ``μ = E_q a``, ``Σ = E_q (a-μ_old)(a-μ_old)ᵀ``.

    The old policy (π_old) is held in ``target_policy_params`` and never receives a gradient. Attach
    ``SoftUpdate`` for a Polyak average or ``HardUpdate`` for a periodic copy. If the particles come with the
    Gaussian they were drawn from (``("particles", "loc")``, ``("particles", "scale_tril")``), that Gaussian
    is the old policy of these states, and no second forward pass is made.

    An M-step takes several gradient steps on one set of particles. `prepare` computes once what these steps
    share: the old policy and the first two moments of the particles. A gradient step then needs one
    triangular solve of ``[B, a, a]``. No determinant is formed, and only triangular factors are inverted.
    On CUDA, a Triton kernel computes the terms and their gradient (docs/gpu.md). The tensor version is used
    with ``fused=False``, where Triton is not installed, for more than 32 actions, for another reduction, and
    where ``torch.func`` differentiates.
    A call on a plain batch prepares it first, every time. `log_likelihood` and `decoupled_terms` state the
    same objective as plain formulas.

    Reads ``observation`` (or whatever the policy reads), ``("particles", "action") [B, K, a]`` and
    ``("particles", "weight") [B, K]``; ``set_keys`` renames them. Of a squashed Gaussian, it fits the values
    before the squashing, ``("particles", "latent")``. The map is fixed, so the objective changes by a
    constant, and the divergences not at all. The entropy is that of these values. Returns scalars; all but
    the losses are detached:

    | entry | |
    |---|---|
    | ``loss_policy`` | ``-likelihood + α_μ C_μ + α_Σ C_Σ``; moves the policy only |
    | ``loss_trust_region`` | dual loss; moves the multipliers only, zero if there are none |
    | ``kl_mean``, ``kl_cov`` | ``C_μ``, ``C_Σ``, nats |
    | ``alpha_mean``, ``alpha_cov`` | multipliers or penalty weights |
    | ``alpha_capped`` | whether a multiplier has reached its cap |
    | ``log_likelihood_mean``, ``log_likelihood_cov`` | the two decoupled terms, nats (both always) |
    | ``log_likelihood`` | the term maximized: their sum, or the joint one |
    | ``entropy`` | mean entropy of the policy, nats |

    Args:
        policy: TorchRL actor that writes ``loc [B, a]`` and ``scale_tril [B, a, a]``, such as
            `gaussian_policy`, squashed or not.
        trust_region: `HardTrustRegion`, `SoftTrustRegion`, `NoTrustRegion` or a module
            ``(C_μ, C_Σ) -> TrustRegionTerms``.
        likelihood: ``"decoupled"`` or ``"joint"``.
        check_weights: raise if the weights of a state do not sum to 1 within 1e-3, or the loss is not finite.
            ``None`` checks on the CPU only, because on a GPU the check makes the host wait. Under
            ``torch.compile`` and ``torch.vmap``, values cannot be read, and nothing is checked.
        reduction: of ``loss_policy`` over the states: ``"mean"``, ``"sum"``, or ``"none"`` for the loss
            ``[B]`` of each state, which holds the state's own likelihood. The penalty is that of the mean
            divergences in any case, so the mean of these losses is the loss of ``"mean"``.
        fused: whether on CUDA one Triton kernel may compute the terms of ``"mean"`` and their gradient.

    Raises:
        ValueError: if ``likelihood`` or ``reduction`` is unknown; in ``prepare`` and ``forward``, if shapes
            do not fit, the batch is empty, the weights do not sum to 1, or the loss is not finite because the
            covariance is too close to singular for its number format.
        KeyError: in ``prepare`` and ``forward``, if the policy does not write ``loc`` and ``scale_tril``.

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
        >>> prepared = loss.prepare(batch)
        >>> out = loss(prepared)  # once per gradient step
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
    #: Entries with the divergences that the trust region bounds.
    divergences: ClassVar[tuple[str, ...]] = ("kl_mean", "kl_cov")
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
        reduction: Reduction = "mean",
        fused: bool = True,
    ) -> None:
        super().__init__(reduction)
        if likelihood not in get_args(Likelihood):
            raise ValueError(f"likelihood={likelihood!r} is not one of {', '.join(get_args(Likelihood))}")
        self.likelihood, self.check_weights, self.fused = likelihood, check_weights, fused
        self.convert_to_functional(policy, "policy", create_target_params=True)
        if squash_of(policy) is not None:
            self.set_keys(particle_action=keys.PARTICLE_LATENT)
        self.trust_region = trust_region
        self.__dict__["_network"] = single_network(policy)  # a part of the policy, not a child of the loss
        # ``policy_params`` wraps the buffers anew; with them, the policy holds the same tensors as the loss.
        self.policy_params.to_module(policy)
        self._policy_modules = [m for m in policy.modules() if m._parameters or m._buffers]
        self.register_buffer("_combination", combination(next(policy.parameters())), persistent=False)
        self.out_keys = [
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

    @property
    def synchronizes(self) -> bool:
        """Whether `prepare` makes the host wait for a GPU."""
        return bool(self.check_weights)

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that a batch must have; the old Gaussian of the particles is optional."""
        names = self.tensor_keys
        return [*self.policy.in_keys, names.particle_action, names.particle_weight]

    def prepare(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute what the gradient steps on one set of particles share.

        Args:
            tensordict: a batch; see the class for the entries read.

        Returns:
            For `forward` alone: what the policy reads, the old policy and the particles' moments. The entries
            do not follow later changes of the batch's particles or of ``target_policy_params``.
        """
        names = self.tensor_keys
        loc = tensordict.get(names.particle_loc, None)
        scale_tril = tensordict.get(names.particle_scale_tril, None)
        if loc is None or scale_tril is None:
            with torch.no_grad():
                loc, scale_tril = self._gaussian(self.target_policy_params, tensordict)
        action, weight = tensordict[names.particle_action], tensordict[names.particle_weight]
        self._check(action, weight, loc, scale_tril)
        old = OldPolicy.of(loc, scale_tril, action, weight, self._combination.to(loc))
        entries = {_STATE: tensordict.select(*self.policy.in_keys), _OLD_POLICY: TensorDict(old._asdict())}
        return TensorDict(entries, [])

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
        old = OldPolicy(**dict(tensordict.get(_OLD_POLICY).items()))
        loc, scale_tril = self._gaussian(self.policy_params, tensordict.get(_STATE))
        if loc.shape != old.loc.shape:
            raise ValueError(
                f"the old policy's loc {tuple(old.loc.shape)} does not fit the policy's {tuple(loc.shape)}"
            )
        means, fit = self._fit(old, loc, scale_tril)
        terms: TrustRegionTerms = self.trust_region(means.kl_mean, means.kl_cov)
        loss = terms.penalty - fit
        if self._may_read(loss) and not bool(loss.isfinite().all()):
            raise _not_finite(loss, scale_tril)
        return TensorDict(
            {
                "loss_policy": loss.sum() if self.reduction == "sum" else loss,
                "loss_trust_region": terms.dual_loss,
                "kl_mean": means.kl_mean.detach(),
                "kl_cov": means.kl_cov.detach(),
                "alpha_mean": terms.alpha_mean,
                "alpha_cov": terms.alpha_cov,
                "alpha_capped": terms.capped,
                "log_likelihood_mean": means.fit_mean.detach(),
                "log_likelihood_cov": means.fit_cov.detach(),
                "log_likelihood": fit.detach().mean(),
                "entropy": means.entropy,
            },
            [],
        )

    def _fit(self, old: OldPolicy, loc: Tensor, scale_tril: Tensor) -> tuple[DecoupledTerms, Tensor]:
        """The terms' means, and the likelihood: its mean or, for another reduction, that of each state."""
        joint, compiling = self.likelihood == "joint", torch.compiler.is_compiling()
        kernel = self.fused and is_fusible(loc) and (compiling or not differentiated())
        if self.reduction == "mean" and (kernel or compiling or not transformed()):
            terms = decoupled_terms
            if kernel:  # imported here, because Triton may be missing
                from safe_components.mstep._fused_triton import decoupled_terms as terms
            means = terms(old, loc, scale_tril)
            fit = (
                joint_log_likelihood(old, means.fit_cov, loc, scale_tril)
                if joint
                else means.fit_mean + means.fit_cov
            )
            return means, fit
        states = state_terms(old, loc, scale_tril)
        fit = states.fit_cov + (joint_term(old, loc, scale_tril) if joint else states.fit_mean)
        means = DecoupledTerms(*(term.mean() for term in states))
        return means, fit.mean() if self.reduction == "mean" else fit

    def _gaussian(self, params: TensorDictParams, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the policy's ``loc`` and ``scale_tril`` with these parameters; leave the input as it is."""
        swap = None if params is self.policy_params and self._policy_is_current() else params
        if self._network is not None:
            outputs = network_outputs(self._network, tensordict, swap)
        else:
            with swapped(self.policy, swap):
                outputs = self.policy.get_dist_params(tensordict.select(*self.policy.in_keys))
        names = self.tensor_keys
        loc, scale_tril = outputs.get(names.loc, None), outputs.get(names.scale_tril, None)
        if loc is None or scale_tril is None:
            raise KeyError(
                f"the policy must write {names.loc!r} and {names.scale_tril!r} (see set_keys), but it writes "
                f"{list(self.policy.out_keys)}; WeightedLikelihoodLoss takes any policy with a distribution"
            )
        return loc, scale_tril

    def _policy_is_current(self) -> bool:
        """Whether the policy's own tensors are those of ``policy_params``; in a deep copy they are not.

        Asked in every call, because a stale answer would send the gradients elsewhere. It saves a swap that
        takes several times as long.
        """
        own = [t for m in self._policy_modules for t in (*m._parameters.values(), *m._buffers.values())]
        own, held = [t for t in own if t is not None], list(_leaves(self.policy_params))
        return len(own) == len(held) and all(map(operator.is_, own, held))

    def _may_read(self, values: Tensor) -> bool:
        """Whether values are checked: none is known while the call is traced."""
        check = self.check_weights if self.check_weights is not None else values.device.type == "cpu"
        return check and not torch.compiler.is_compiling() and not transformed()

    def _check(self, action: Tensor, weight: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        size = loc.shape[-1]
        if scale_tril.shape != (*loc.shape, size):
            raise ValueError(
                f"the old policy's loc {tuple(loc.shape)} and scale_tril {tuple(scale_tril.shape)} do not fit"
            )
        if weight.shape != action.shape[:-1] or (*weight.shape[:-1], action.shape[-1]) != loc.shape:
            raise ValueError(
                f"particles of shape action [..., K, a], weight [..., K] are needed for an old policy with "
                f"loc {tuple(loc.shape)}, got {tuple(action.shape)} and {tuple(weight.shape)}"
            )
        require_states(weight.shape[:-1], "the batch of particles")
        if self._may_read(weight):
            error = float((weight.sum(-1) - 1.0).abs().max())
            if not error <= 1e-3:  # also catches NaN
                raise ValueError(
                    f"the particles' weights must sum to 1 in every state; they miss it by up to "
                    f"{error:.3g}. Run the E-step first or normalize them"
                )


def _not_finite(loss: Tensor, scale_tril: Tensor) -> ValueError:
    scale_tril = scale_tril.detach()
    largest, least = float(scale_tril.abs().max()), float(scale_tril.diagonal(dim1=-2, dim2=-1).min())
    return ValueError(
        f"loss_policy is not finite: the policy's scale_tril has entries up to {largest:.3g} and a diagonal "
        f"down to {least:.3g}, and a covariance so close to singular cannot be inverted in {loss.dtype}. "
        "Scale the observations to order 1, or use a diagonal covariance or float64"
    )


def _leaves(params: TensorDictBase) -> Iterator[Tensor]:
    """Yield the tensors of all levels, a module's own before those of its children."""
    for value in params.values():
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _leaves(value)
