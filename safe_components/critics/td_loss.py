"""The temporal-difference loss of a Q ensemble, for rewards and for any number of costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictParams, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.modules.distributions.utils import sample_and_log_prob
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import distance_loss

from safe_components import keys
from safe_components.ops import Aggregate, aggregate, network_outputs, single_network, swapped


class TDLoss(LossModule):
    """Squared temporal-difference error of an ensemble ``Q_e`` against its target network ``Q'_e``.

        min_Q  sum_e sum_i mean_b d(Q_e(s_b, a_b)_i, y_b,i)                    d(q, y) = (q - y)^2
        y = r + γ^n (1 - terminated) mean_j [ agg_e Q'_e(s', a'_j) ],          a'_j ~ policy(s')

    over members ``e``, outputs ``i`` (one for the reward, ``m`` for the costs) and transitions ``b``.
    ``y`` carries no gradient. The value after a *truncated* step is bootstrapped, since the task would
    have gone on; after a *terminated* one it is zero. ``n`` is 1, or the entry ``steps_to_next_obs`` that
    multi-step transforms write beside the summed rewards; use the same ``gamma`` there
    (`n_step_transform` does all of it).

    The next actions are drawn from the policy's distribution, whatever the exploration mode; a policy
    without one (a deterministic actor) is simply called. The policy's parameters belong to the caller: they
    are neither registered here nor moved by ``.to``.

    Reads ``observation``, ``action``, ``("next", "observation")``, ``("next", reward)``, ``("next",
    "terminated")``, optionally ``steps_to_next_obs [B]`` and the importance weights ``_weight [B]`` of a
    prioritized buffer (means over ``b`` then weigh them). Writes ``td_error [B]``, the priority
    ``mean_{e,i} |Q - y|``, into its input. The keys can be renamed with ``set_keys``.

    Returns a TensorDict without batch size:

    | entry | shape | |
    |---|---|---|
    | ``loss_q`` | [] | to be minimised |
    | ``td_error`` | [num_outputs] | mean absolute error, detached |
    | ``q_mean`` | [num_outputs] | mean value of the batch's actions, detached |
    | ``target_mean`` | [num_outputs] | mean target, detached |

    Args:
        critic: module ``(observation [B, o], action [B, (K,) a]) -> [E, B, (K,) num_outputs]``, as
            `QEnsemble`.
        policy: TensorDict module that acts in the next state.
        reward_key: entry learnt, ``[B, num_outputs]``: ``keys.REWARD``, ``keys.COST`` or another signal.
        gamma: discount, in ``[0, 1]``.
        aggregate: how the target members become one: ``"min"``, ``"mean"``, ``"max"``, ``"conservative"``
            (mean + ``std_coef`` standard deviations). Pessimism is ``"min"`` for rewards and
            ``"max"`` or ``"conservative"`` for costs.
        std_coef: see ``aggregate``.
        bootstrap_terminal: True adds the next value after termination as well (``1 - terminated``
            becomes 1), as CVPO's authors do for the cost, so that ending an episode early does not look safe.
        num_action_samples: next actions per state, at least 1.
        policy_params: parameters that act in the next state in place of the policy's own, for instance
            an M-step's ``target_policy_params``; or a function returning them, where the loss that holds
            them is made later.
        entropy_coef: ``α``, or a function returning it, of the soft target
            ``agg Q' - α log π(a'|s')``; 0 for none.
        loss_function: ``d``: ``"l2"`` (no factor ½), ``"l1"`` or ``"smooth_l1"`` (Huber, ``δ = 1``).
        smooth_action: function ``[B, a] -> [B, a]`` applied to the next action, as `TargetSmoothing`; not
            together with ``entropy_coef``, whose ``log π`` is that of the policy's own action.

    Raises:
        ValueError: if a setting is out of range; in ``forward``, if the shapes do not fit together.
        KeyError: in ``forward``, if an entry is missing.

    Source: clipped double Q, Fujimoto et al. 2018 (arXiv 1802.09477), eq. 10 with the policy's own noise;
    truncation against termination, Pardo et al. 2018 (arXiv 1712.00378), eq. 8.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.objectives import SoftUpdate
        >>> from tensordict.nn import TensorDictModule
        >>> from safe_components.critics import QEnsemble
        >>> _ = torch.manual_seed(0)
        >>> actor = TensorDictModule(torch.nn.Linear(3, 2), ["observation"], ["action"])
        >>> loss = TDLoss(QEnsemble(3, 2, num_members=2, hidden_sizes=(8,)), actor)
        >>> target_updater = SoftUpdate(loss, tau=0.005)
        >>> batch = TensorDict(
        ...     observation=torch.randn(4, 3),
        ...     action=torch.randn(4, 2),
        ...     next=TensorDict(
        ...         observation=torch.randn(4, 3),
        ...         reward=torch.ones(4, 1),
        ...         terminated=torch.ones(4, 1, dtype=torch.bool),
        ...         batch_size=4,
        ...     ),
        ...     batch_size=4,
        ... )
        >>> out = loss(batch)
        >>> out["target_mean"]  # terminated: nothing but the reward
        tensor([1.])
    """

    @dataclass
    class _AcceptedKeys:
        observation: NestedKey = keys.OBSERVATION
        action: NestedKey = keys.ACTION
        reward: NestedKey = keys.REWARD
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
        *,
        reward_key: NestedKey = keys.REWARD,
        gamma: float = 0.99,
        aggregate: Aggregate = "min",
        std_coef: float = 0.5,
        bootstrap_terminal: bool = False,
        num_action_samples: int = 1,
        policy_params: TensorDictBase | TensorDictParams | Callable[[], TensorDictBase] | None = None,
        entropy_coef: float | Callable[[], Tensor] = 0.0,
        loss_function: str = "l2",
        smooth_action: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.set_keys(reward=reward_key)
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma={gamma} must lie in [0, 1]")
        if num_action_samples < 1:
            raise ValueError(f"num_action_samples={num_action_samples} must be at least 1")
        if loss_function not in ("l2", "l1", "smooth_l1"):
            raise ValueError(f"loss_function={loss_function!r} is not one of l2, l1, smooth_l1")
        self._stochastic = hasattr(policy, "get_dist")
        self._soft = callable(entropy_coef) or entropy_coef != 0.0
        if not self._stochastic and (num_action_samples > 1 or self._soft):
            raise ValueError(
                "num_action_samples > 1 and entropy_coef need a policy with a distribution (get_dist), "
                f"got a {type(policy).__name__}"
            )
        if self._soft and smooth_action is not None:
            raise ValueError(
                "smooth_action changes the action whose log π entropy_coef weighs: use one of them"
            )
        self.gamma, self.aggregate, self.std_coef = gamma, aggregate, std_coef
        self.bootstrap_terminal, self.num_action_samples = bootstrap_terminal, num_action_samples
        self.entropy_coef, self.loss_function = entropy_coef, loss_function
        self.convert_to_functional(critic, "critic", create_target_params=True)
        # Kept out of the module tree, so that an optimiser of this loss moves the critic only.
        self.__dict__["policy"] = policy
        self.__dict__["_network"] = single_network(policy)
        self.__dict__["policy_params"] = policy_params
        self.__dict__["smooth_action"] = smooth_action
        _check_aggregate(aggregate, std_coef)

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read in every call; the optional ones are not among them."""
        names = self.tensor_keys
        following: list[NestedKey] = [unravel_key(("next", names.observation))]
        following += [
            k for k in (unravel_key(("next", k)) for k in self.policy.in_keys) if k not in following
        ]
        return [names.observation, names.action, *following, names.reward, names.terminated]

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries returned."""
        return ["loss_q", "td_error", "q_mean", "target_mean"]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """No value estimator: the targets are computed here."""

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss of a batch; see the class for the entries read and returned."""
        names = self.tensor_keys
        with swapped(self.critic, self.critic_params):
            q = self.critic(tensordict[names.observation], tensordict[names.action])
        target = self.target(tensordict)
        if q.shape[1:] != target.shape:
            raise ValueError(
                f"the critic's values {tuple(q.shape[1:])} and the targets {tuple(target.shape)} differ: "
                f"entry {names.reward!r} needs one column per critic output (num_outputs)"
            )
        loss = self._mean_distance(tensordict, q, target.expand_as(q))
        deviation = (q.detach() - target).abs()
        tensordict.set(names.priority, deviation.mean((0, -1)))
        return TensorDict(
            {
                "loss_q": loss.sum(),
                "td_error": deviation.flatten(0, -2).mean(0),
                "q_mean": q.detach().flatten(0, -2).mean(0),
                "target_mean": target.flatten(0, -2).mean(0),
            },
            [],
        )

    @torch.no_grad()
    def target(self, tensordict: TensorDictBase) -> Tensor:
        """``y [..., num_outputs]`` of a batch, in the unit of the reward, discounted."""
        q, log_prob = self._next_q(tensordict["next"])
        value = aggregate(q, self.aggregate, self.std_coef)
        value = self._soften(value, log_prob)
        return self._backup(tensordict, self.tensor_keys.reward, value, self.bootstrap_terminal)

    def _mean_distance(self, tensordict: TensorDictBase, q: Tensor, target: Tensor) -> Tensor:
        """``mean_b d(q, y)``, weighted where the batch says so: ``[E, num_outputs]``."""
        error = distance_loss(q, target, self.loss_function)
        weight = tensordict.get(self.tensor_keys.priority_weight, None)
        if weight is None:
            return error.flatten(1, -2).mean(1)
        weight = weight.reshape(*error.shape[1:-1], 1)
        return (weight * error).flatten(1, -2).sum(1) / weight.sum()

    def _backup(
        self,
        tensordict: TensorDictBase,
        reward_key: NestedKey,
        value: Tensor,
        bootstrap_terminal: bool,
    ) -> Tensor:
        """``r + γ^n (1 - terminated) value``, for ``num_action_samples`` values a state their mean."""
        names, reward = self.tensor_keys, tensordict[reward_key]
        value = value.mean(-2) if self.num_action_samples > 1 else value
        if reward.shape != value.shape:
            raise ValueError(
                f"entry {reward_key!r} of shape {tuple(reward.shape)} does not fit the critic's next "
                f"values {tuple(value.shape)}: one column per critic output (num_outputs) is needed"
            )
        steps = tensordict.get(names.steps_to_next_obs, None)
        if steps is None:
            discount: float | Tensor = self.gamma
        else:
            discount = torch.pow(self.gamma, steps.to(reward.dtype)).reshape(*reward.shape[:-1], 1)
        if not bootstrap_terminal:
            # Selected, not multiplied: what follows a terminal state may be undefined.
            terminated = tensordict[names.terminated]
            value = torch.where(terminated.reshape(*reward.shape[:-1], 1), 0.0, value)
        return reward + discount * value

    def _soften(self, value: Tensor, log_prob: Tensor | None) -> Tensor:
        """``value - α log π``, if asked for."""
        if log_prob is None:
            return value
        coef = self.entropy_coef() if callable(self.entropy_coef) else self.entropy_coef
        return value - coef * log_prob.unsqueeze(-1)

    def _next_q(self, following: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """``Q'_e(s', a'_j) [E, ..., (K,) num_outputs]``, and ``log π(a'_j|s')`` for a soft target."""
        action, log_prob = self._next_action(following)
        if self.smooth_action is not None:
            action = self.smooth_action(action)
        observation = following[self.tensor_keys.observation]
        with swapped(self.critic, self.target_critic_params):
            return self.critic(observation, action), log_prob

    def _next_action(self, following: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """``a' [..., (K,) a]`` and, for a soft target, ``log π(a'|s') [..., (K)]``."""
        params = self.policy_params
        if params is not None and not isinstance(params, TensorDictBase):
            params = params()
        if self._network is not None:
            outputs = network_outputs(self._network, following, params)
            return self._draw(self.policy.module[-1].get_dist(TensorDict(outputs, following.batch_size)))
        inputs = following.select(*self.policy.in_keys)
        with swapped(self.policy, params):
            if not self._stochastic:
                return self.policy(inputs)[self.tensor_keys.action], None
            return self._draw(self.policy.get_dist(inputs))

    def _draw(self, dist: Distribution) -> tuple[Tensor, Tensor | None]:
        shape = () if self.num_action_samples == 1 else (self.num_action_samples,)
        if not self._soft:
            action = dist.sample(shape)
            return (action.movedim(0, -2) if shape else action), None
        # Scored where it was drawn: inverting a saturated tanh would lose the draw.
        action, log_prob = sample_and_log_prob(dist, shape)
        return (action.movedim(0, -2), log_prob.movedim(0, -1)) if shape else (action, log_prob)


def _check_aggregate(how: Aggregate, std_coef: float) -> None:
    aggregate(torch.zeros(2, 1), how, std_coef)  # raises on an unknown name
    if std_coef < 0.0:
        raise ValueError(f"std_coef={std_coef} must be at least 0")
