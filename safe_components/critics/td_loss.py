"""The temporal-difference loss of a critic, for a reward, costs, or both at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.modules.distributions.utils import sample_and_log_prob
from torchrl.objectives.utils import distance_loss

from safe_components import keys
from safe_components.ops import (
    Aggregate,
    BaseLoss,
    Reduction,
    Temperature,
    aggregate,
    has_distribution,
    network_outputs,
    require_states,
    single_network,
    swapped,
)


@dataclass(frozen=True)
class Signal:
    """A quantity ``s`` that a critic learns with ``n_s`` outputs, and how its targets are formed.

    Args:
        key: entry learned, ``[B, n_s]``: `keys.REWARD`, `keys.COST` or another one. Its last part names the
            signal.
        aggregate: how the target members become one, see :func:`~safe_components.ops.aggregate`. Pessimism
            is ``"min"`` for a reward, ``"max"`` or ``"conservative"`` for a cost.
        std_coef: weight of the standard deviation in ``"conservative"``.
        bootstrap_terminal: True adds the next value after termination as well. CVPO's authors do so for the
            cost, so that ending an episode early does not look safe.
        soft: True subtracts ``α log π`` from the next value, where the loss has an ``entropy_coef``.

    Raises:
        ValueError: if ``aggregate`` is unknown or ``std_coef`` is negative.

    Example:
        >>> Signal(keys.COST, aggregate="conservative", std_coef=1.0).name
        'cost'
    """

    key: NestedKey
    aggregate: Aggregate = "min"
    std_coef: float = 0.5
    bootstrap_terminal: bool = False
    soft: bool = False

    def __post_init__(self) -> None:
        aggregate(torch.zeros(2, 1), self.aggregate, self.std_coef)  # raises on an unknown name
        if self.std_coef < 0.0:
            raise ValueError(f"std_coef={self.std_coef} must be at least 0")

    @property
    def name(self) -> str:
        """The last part of ``key``."""
        return self.key if isinstance(self.key, str) else str(self.key[-1])


REWARD_SIGNAL = Signal(keys.REWARD, soft=True)
"""The reward with the minimum over members (clipped double Q), and with the entropy if a loss asks for it."""

COST_SIGNAL = Signal(keys.COST, aggregate="mean")
"""The costs with the mean over members."""


class TDLoss(BaseLoss):
    """Squared temporal-difference error of ensembles ``Q_s,e`` against their target networks ``Q'_s,e``.

        min_Q  Σ_s Σ_e Σ_i mean_b d(Q_s,e(s_b, a_b)_i, y_s,b,i)                           d(q, y) = (q - y)²
        y_s = r_s + γⁿ (1 - terminated) mean_j [ agg_e Q'_s,e(s', a'_j) - α log π(a'_j|s') ],     a'_j ~ π(s')

    The sums run over signals ``s``, their members ``e`` and outputs ``i`` (one for the reward, ``m`` for the
    costs); ``b`` counts transitions. ``y`` carries no gradient, and only soft signals have the term with
    ``α``. All signals share the next actions and one pass through each network. The value after a *truncated*
    step is bootstrapped, since the task would have gone on; after a *terminated* step it is zero, whatever
    the next observation holds. ``n`` is 1, or the entry ``steps_to_next_obs`` that multi-step transforms
    write beside the summed rewards. They must use the same ``gamma`` (`n_step_transform` sets up all of it).

    The next actions are drawn from the policy's distribution, whatever the exploration mode. A policy
    without a distribution (a deterministic actor) is simply called. The policy's parameters belong to the
    caller: they are neither registered here nor moved by ``.to``.

    The loss reads ``observation``, ``action``, ``("next", "observation")``, ``("next", "terminated")`` and
    each signal's key. It also reads ``steps_to_next_obs [B]`` and the importance weights ``_weight [B]`` of a
    prioritized buffer, if they are there; with ``_weight``, the mean over ``b`` is weighted, and zero if all
    weights are. It writes the priority ``td_error [B]`` into its input, the mean of ``|Q - y|`` over all
    members and outputs. ``set_keys`` renames all of these but the signals' keys.

    The result is a TensorDict without batch size. ``N`` is the number of outputs of all signals together:

    | entry | shape | |
    |---|---|---|
    | ``loss_q`` | [] | to be minimized |
    | ``loss_q_reward``, ``loss_q_cost`` (``loss_q_`` and a signal's name) | [] | its parts, detached |
    | ``td_error`` | [N] | mean absolute error of each output, detached |
    | ``q_mean`` | [N] | mean value of the batch's actions, detached |
    | ``target_mean`` | [N] | mean target, detached |

    Args:
        critic: module ``(observation [B, o], action [B, (K,) a])`` that returns one tensor
            ``[E, B, (K,) n_s]`` per signal, such as `ConstrainedQEnsemble`. For one signal it may return the
            tensor itself, as `QEnsemble` does.
        policy: TensorDict module that acts in the next state.
        signals: what the critic's tensors estimate, in their order. One signal may be given alone.
        gamma: discount ``γ``, in ``[0, 1]``.
        num_action_samples: next actions per state, at least 1.
        policy_params: parameters that act in the next state in place of the policy's own, such as another
            loss's ``target_policy_params``.
        entropy_coef: ``α`` of the soft signals: a number, a tensor ``[]`` that is shared and not copied, or a
            function that returns its present value; 0 for no entropy.
        loss_function: ``d``: ``"l2"`` (no factor ½), ``"l1"`` or ``"smooth_l1"`` (Huber, ``δ = 1``).
        smooth_action: function ``[B, a] -> [B, a]`` applied to the next action, such as `TargetSmoothing`.
            It excludes ``entropy_coef``, whose ``log π`` is that of the policy's own action.
        reduction: ``"mean"`` over the transitions, weighted if they have weights; ``"sum"`` of their weighted
            losses; or ``"none"`` for the weighted loss of each transition ``[B]``.

    Raises:
        ValueError: if a setting is out of range; in ``forward``, if the shapes do not fit together or the
            batch is empty.
        KeyError: in ``forward``, if an entry is missing.

    Source: clipped double Q, Fujimoto et al. 2018 (arXiv 1802.09477), eq. 10 with the policy's own noise;
    truncation against termination, Pardo et al. 2018 (arXiv 1712.00378), eq. 8.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import Actor
        >>> from safe_components.critics import ConstrainedQEnsemble, Polyak, QEnsemble
        >>> policy = Actor(torch.nn.Linear(3, 2))
        >>> loss = TDLoss(ConstrainedQEnsemble(3, 2, num_reward_members=2, num_cost_members=1), policy)
        >>> target = Polyak(loss, eps=0.995)
        >>> following = TensorDict(
        ...     observation=torch.randn(4, 3),
        ...     reward=torch.ones(4, 1),
        ...     cost=torch.full((4, 1), 2.0),
        ...     terminated=torch.ones(4, 1, dtype=torch.bool),
        ...     batch_size=4,
        ... )
        >>> observation, action = torch.randn(4, 3), torch.randn(4, 2)
        >>> batch = TensorDict(observation=observation, action=action, next=following, batch_size=4)
        >>> loss(batch)["target_mean"]  # terminated: reward and cost alone
        tensor([1., 2.])
        >>> cost_loss = TDLoss(QEnsemble(3, 2, num_members=1), policy, COST_SIGNAL)  # one signal
    """

    @dataclass
    class _AcceptedKeys:
        observation: NestedKey = keys.OBSERVATION
        action: NestedKey = keys.ACTION
        terminated: NestedKey = keys.TERMINATED
        steps_to_next_obs: NestedKey = "steps_to_next_obs"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    critic: nn.Module
    critic_params: TensorDictParams
    target_critic_params: TensorDictParams

    def __init__(
        self,
        critic: nn.Module,
        policy: nn.Module,
        signals: Signal | Sequence[Signal] = (REWARD_SIGNAL, COST_SIGNAL),
        *,
        gamma: float = 0.99,
        num_action_samples: int = 1,
        policy_params: TensorDictBase | None = None,
        entropy_coef: float | Tensor | Callable[[], Tensor] = 0.0,
        loss_function: str = "l2",
        smooth_action: Callable[[Tensor], Tensor] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.signals = (signals,) if isinstance(signals, Signal) else tuple(signals)
        names = [signal.name for signal in self.signals]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"signals must be at least one, each with a name of its own, got {names}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma={gamma} must lie in [0, 1]")
        if num_action_samples < 1:
            raise ValueError(f"num_action_samples={num_action_samples} must be at least 1")
        if loss_function not in ("l2", "l1", "smooth_l1"):
            raise ValueError(f"loss_function={loss_function!r} is not one of l2, l1, smooth_l1")
        self._stochastic = has_distribution(policy)
        temperature = Temperature(entropy_coef)
        if not self._stochastic and (num_action_samples > 1 or temperature.active):
            raise ValueError(
                "num_action_samples > 1 and entropy_coef need a policy with a distribution (get_dist), "
                f"got a {type(policy).__name__}"
            )
        if temperature.active and smooth_action is not None:
            raise ValueError(
                "smooth_action changes the action whose log π entropy_coef weighs: use one of them"
            )
        if temperature.active and not any(signal.soft for signal in self.signals):
            raise ValueError(f"entropy_coef needs a signal with soft=True, got {names}")
        self.gamma, self.num_action_samples = gamma, num_action_samples
        self.entropy_coef, self.loss_function = temperature, loss_function
        self.convert_to_functional(critic, "critic", create_target_params=True)
        # Kept out of the module tree, so that an optimizer of this loss moves only the critic.
        self.__dict__["policy"] = policy
        self.__dict__["_network"] = single_network(policy)
        self.__dict__["policy_params"] = policy_params
        self.__dict__["smooth_action"] = smooth_action
        self.out_keys = ["loss_q", *(f"loss_q_{name}" for name in names), "td_error", "q_mean", "target_mean"]

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read in every call; the optional ones are not among them."""
        names = self.tensor_keys
        following: list[NestedKey] = [unravel_key(("next", names.observation))]
        following += [
            k for k in (unravel_key(("next", k)) for k in self.policy.in_keys) if k not in following
        ]
        return [
            names.observation,
            names.action,
            *following,
            *(signal.key for signal in self.signals),
            names.terminated,
        ]

    @dispatch  # type: ignore[untyped-decorator]  # TensorDict has no types
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss of a batch; see the class for the entries read and returned."""
        names = self.tensor_keys
        require_states(tensordict[names.observation].shape[:-1], str(names.observation))
        with swapped(self.critic, self.critic_params):
            values = self._values(tensordict[names.observation], tensordict[names.action])
        targets = self.targets(tensordict)
        losses = [self._distance(tensordict, *pair) for pair in zip(values, targets, strict=True)]
        values = [q.detach() for q in values]
        errors = [(q - y).abs() for q, y in zip(values, targets, strict=True)]
        priority = torch.stack([error.sum((0, -1)) for error in errors]).sum(0)
        tensordict.set(names.priority, priority / sum(len(q) * q.shape[-1] for q in values))
        parts = {
            f"loss_q_{signal.name}": loss.detach() for signal, loss in zip(self.signals, losses, strict=True)
        }
        return TensorDict(
            {
                "loss_q": torch.stack(losses).sum(0),
                **parts,
                "td_error": _means(errors),
                "q_mean": _means(values),
                "target_mean": _means(y.unsqueeze(0) for y in targets),
            },
            [],
        )

    @torch.no_grad()
    def targets(self, tensordict: TensorDictBase) -> list[Tensor]:
        """Return ``y_s [..., n_s]`` of each signal, discounted, in the unit of its entry."""
        names = self.tensor_keys
        lead = tensordict[names.observation].shape[:-1]
        terminated = tensordict[names.terminated].reshape(*lead, 1)
        following = self._next_states(tensordict["next"], terminated)
        action, log_prob = self._next_action(following)
        if self.smooth_action is not None:
            action = self.smooth_action(action)
        observation = following[names.observation]
        with swapped(self.critic, self.target_critic_params):
            values = self._values(observation, action)
        discount: float | Tensor = self.gamma
        steps = tensordict.get(names.steps_to_next_obs, None)
        if steps is not None:
            discount = torch.pow(self.gamma, steps.to(values[0].dtype)).reshape(*lead, 1)
        targets = []
        for signal, q in zip(self.signals, values, strict=True):
            value = aggregate(q, signal.aggregate, signal.std_coef)
            if signal.soft and log_prob is not None:
                value = value - self.entropy_coef() * log_prob.unsqueeze(-1)
            value = value.mean(-2) if self.num_action_samples > 1 else value
            reward = tensordict[signal.key]
            if reward.shape != value.shape:
                raise ValueError(
                    f"entry {signal.key!r} of shape {tuple(reward.shape)} does not fit the critic's next "
                    f"values {tuple(value.shape)}: it needs one column per output of the critic"
                )
            if not signal.bootstrap_terminal:
                value = torch.where(terminated, 0.0, value)
            targets.append(reward + discount * value)
        return targets

    def _next_states(self, following: TensorDictBase, terminated: Tensor) -> TensorDictBase:
        """What critic and policy read of the next states; zero after a terminal state if no signal needs it.

        What follows a terminal state may be undefined, and distributions refuse parameters that are NaN.
        """
        inputs = following.select(self.tensor_keys.observation, *self.policy.in_keys)
        if any(signal.bootstrap_terminal for signal in self.signals):
            return inputs
        lead = terminated.shape[:-1]
        for key, value in inputs.items(include_nested=True, leaves_only=True):
            ended = terminated.reshape(*lead, *(1,) * (value.ndim - len(lead)))
            inputs.set(key, value.masked_fill(ended, 0))
        return inputs

    def _values(self, observation: Tensor, action: Tensor) -> list[Tensor]:
        """One tensor ``[E, ..., (K,) n_s]`` per signal."""
        values = self.critic(observation, action)
        values = [values] if isinstance(values, Tensor) else list(values)
        if len(values) != len(self.signals):
            raise ValueError(
                f"the critic returns {len(values)} tensor(s) for {len(self.signals)} signal(s): "
                + ", ".join(signal.name for signal in self.signals)
            )
        return values

    def _distance(self, tensordict: TensorDictBase, q: Tensor, target: Tensor) -> Tensor:
        """``Σ_e Σ_i d(q, y)``, reduced over ``b`` with weights if the batch has them."""
        error: Tensor = distance_loss(q, target.expand_as(q), self.loss_function)
        weight: Tensor | None = tensordict.get(self.tensor_keys.priority_weight, None)
        if weight is not None:
            error = weight.reshape(*error.shape[1:-1], 1) * error
        if self.reduction == "none":
            return error.sum((0, -1))
        if self.reduction == "sum":
            return error.sum()
        if weight is None:
            return error.flatten(1, -2).mean(1).sum()
        total = weight.sum()
        return (error.flatten(1, -2).sum(1) / (total + (total == 0.0))).sum()

    def _next_action(self, following: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """``a' [..., (K,) a]`` and, for a soft target, ``log π(a'|s') [..., (K)]``."""
        params = self.policy_params
        if self._network is not None:
            outputs = network_outputs(self._network, following, params)
            return self._draw(self.policy.module[-1].get_dist(TensorDict(outputs, following.batch_size)))
        inputs = following.select(*self.policy.in_keys)  # a policy writes into its input
        with swapped(self.policy, params):
            if not self._stochastic:
                return self.policy(inputs)[self.tensor_keys.action], None
            return self._draw(self.policy.get_dist(inputs))

    def _draw(self, dist: Distribution) -> tuple[Tensor, Tensor | None]:
        shape = () if self.num_action_samples == 1 else (self.num_action_samples,)
        if not self.entropy_coef.active:
            action = dist.sample(shape)
            return (action.movedim(0, -2) if shape else action), None
        # Scored where it was drawn: inverting a saturated tanh would lose the draw.
        action, log_prob = sample_and_log_prob(dist, shape)
        return (action.movedim(0, -2), log_prob.movedim(0, -1)) if shape else (action, log_prob)


def _means(signals: Iterable[Tensor]) -> Tensor:
    """Mean over transitions and members of each output of each ``[E, ..., n_s]``: ``[sum of n_s]``."""
    return torch.cat([value.flatten(1, -2).mean(1).mean(0) for value in signals])
