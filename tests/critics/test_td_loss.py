"""TD loss against a two-state chain whose values are known, and against targets written out by hand."""

import dataclasses

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Normal
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import HardUpdate, SoftUpdate

from safe_components import keys
from safe_components.critics import (
    COST_SIGNAL,
    REWARD_SIGNAL,
    ConstrainedQEnsemble,
    CriticPair,
    QEnsemble,
    Signal,
    TDLoss,
    n_step_transform,
)
from safe_components.policies import deterministic_policy, gaussian_policy, tanh_gaussian_policy

GAMMA = 0.9
STATES = torch.eye(2, dtype=torch.float64)
# A rounding of float64 is 1e-16 of a number of order 1, and sums of some ten terms repeat it.
ROUNDING = {"rtol": 0, "atol": 1e-14}


class Table(nn.Module):
    """``Q_e(s, a) = table[e, s]`` for one-hot states: what TD learns exactly."""

    def __init__(self, members=2, outputs=1):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(members, 2, outputs, dtype=torch.float64))

    def forward(self, observation, action):
        return observation @ self.table


class LinearQ(nn.Module):
    """``Q_e(s, a) = w_e sum(a) + b_e``, whose mean over actions is known."""

    def __init__(self, slopes, offsets):
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor(slopes, dtype=torch.float64)[:, None])
        self.offsets = nn.Parameter(torch.tensor(offsets, dtype=torch.float64)[:, None])

    def forward(self, observation, action):
        lead = (1,) * (action.ndim - 2)
        slopes, offsets = (p.view(-1, *lead, 1) for p in (self.slopes, self.offsets))
        return (slopes * action.sum(-1) + offsets).unsqueeze(-1)


class Constant(nn.Module):
    """Action ``value`` in every state, or the Gaussian around it."""

    def __init__(self, value=0.0, std=None):
        super().__init__()
        self.value, self.std = nn.Parameter(torch.tensor(value, dtype=torch.float64)), std

    def forward(self, observation):
        loc = self.value.expand(*observation.shape[:-1], 1)
        return loc if self.std is None else (loc, torch.full_like(loc, self.std))


def deterministic(value=0.0):
    return TensorDictModule(Constant(value), ["observation"], ["action"])


def stochastic(value=0.0, std=1.0):
    return ProbabilisticActor(
        TensorDictModule(Constant(value, std), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormalOfOne,
    )


class IndependentNormalOfOne(torch.distributions.Independent):
    def __init__(self, loc, scale):
        super().__init__(Normal(loc, scale), 1)

    @property
    def deterministic_sample(self):
        return self.mean


def chain(length, *, terminated=False, reward=(1.0, 0.0), cost=((0.0, 3.0), (2.0, 0.0))):
    """``length`` steps of ``s0 -> s1 -> s0 -> ...``; reward and two costs depend on the state left."""
    index = torch.arange(length) % 2
    end = torch.zeros(length, 1, dtype=torch.bool)
    end[-1] = True
    following = TensorDict(
        observation=STATES[1 - index],
        reward=torch.tensor(reward, dtype=torch.float64)[index, None],
        cost=torch.tensor(cost, dtype=torch.float64)[index],
        done=end,
        terminated=end if terminated else torch.zeros_like(end),
        truncated=torch.zeros_like(end) if terminated else end,
        batch_size=length,
    )
    action = torch.zeros(length, 1, dtype=torch.float64)
    return TensorDict(observation=STATES[index], action=action, next=following, batch_size=length)


def solve(loss, batch, iterations=250):
    """Fitted Q iteration: targets copied each step, then a step that lands on them exactly. [E, 2, m]."""
    updater = HardUpdate(loss, value_network_update_interval=0)  # copies every interval + 1 calls
    visits = batch["observation"].sum(0)
    for _ in range(iterations):
        gradient = torch.autograd.grad(loss(batch)["loss_q"], loss.critic_params["table"])[0]
        with torch.no_grad():
            # d loss / d table[e, s] = 2 visits[s] / B (Q - mean target)
            loss.critic_params["table"].sub_(gradient * len(batch) / (2 * visits[:, None]))
        updater.step()
    return loss.critic_params["table"].detach()


# The error after 250 iterations is γ^250 = 4e-12 of the first one, which is the values' size: 27 at most.
SOLVED = {"rtol": 0, "atol": 2e-10}


def test_a_chain_that_goes_on_after_truncation_has_its_infinite_return():
    values = solve(TDLoss(Table(), deterministic(), REWARD_SIGNAL, gamma=GAMMA), chain(2))
    expected = torch.tensor([1.0, GAMMA], dtype=torch.float64) / (1 - GAMMA**2)
    torch.testing.assert_close(values[..., 0], expected.expand(2, 2), **SOLVED)


def test_a_chain_that_terminates_has_its_finite_return():
    values = solve(TDLoss(Table(), deterministic(), REWARD_SIGNAL, gamma=GAMMA), chain(2, terminated=True))
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values[..., 0], expected.expand(2, 2), **SOLVED)


@pytest.mark.parametrize("bootstrap_terminal", [False, True])
@pytest.mark.parametrize("aggregate", ["mean", "max", "min", "conservative"])
def test_two_costs_terminated_with_and_without_bootstrap(aggregate, bootstrap_terminal):
    signal = Signal(keys.COST, aggregate=aggregate, bootstrap_terminal=bootstrap_terminal)
    loss = TDLoss(Table(members=3, outputs=2), deterministic(), signal, gamma=GAMMA)
    values = solve(loss, chain(2, terminated=True))
    if bootstrap_terminal:
        expected = torch.tensor([[2 * GAMMA, 3.0], [2.0, 3 * GAMMA]], dtype=torch.float64) / (1 - GAMMA**2)
    else:
        expected = torch.tensor([[2 * GAMMA, 3.0], [2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(values, expected.expand(3, 2, 2), **SOLVED)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
def test_n_step_targets_of_terminated_and_truncated_episodes(n_steps):
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(100), batch_size=8, transform=n_step_transform(n_steps, GAMMA)
    )
    buffer.extend(torch.cat([chain(3, terminated=True), chain(4)] * 4))
    data = buffer[:]
    critic = Table(outputs=2)
    loss = TDLoss(critic, deterministic(), COST_SIGNAL, gamma=GAMMA)
    HardUpdate(loss, value_network_update_interval=1)
    loss.target_critic_params["table"].data.copy_(torch.tensor([[5.0, 7.0], [11.0, 13.0]]))
    (targets,) = loss.targets(data)
    costs, table = torch.tensor([[0.0, 3.0], [2.0, 0.0]]).double(), loss.target_critic_params["table"][0]
    for t in range(len(data)):
        position = t % 7
        left, terminates = (3 - position, True) if position < 3 else (7 - position, False)
        start = position % 2 if position < 3 else (position - 3) % 2
        n = min(n_steps, left)
        expected = sum(GAMMA**j * costs[(start + j) % 2] for j in range(n))
        if not (terminates and n == left):
            expected = expected + GAMMA**n * table[(start + n) % 2]
        # TorchRL's powers of gamma are float32: roundings of 6e-8 of costs of 13 at most.
        torch.testing.assert_close(targets[t], expected, rtol=0, atol=2e-6)


def test_what_follows_a_terminal_state_may_be_undefined():
    batch = chain(2, terminated=True)
    batch["next", "observation"][-1] = torch.nan
    loss = TDLoss(Table(), deterministic(), REWARD_SIGNAL, gamma=GAMMA)
    HardUpdate(loss, value_network_update_interval=1)
    out = loss(batch)
    assert torch.isfinite(out["loss_q"])
    assert out["target_mean"].tolist() == [0.5]


def small_critic():
    return QEnsemble(3, 1, 2, hidden_sizes=(8,)).double()


def batch_of(size, dtype=torch.float64, outputs=1):
    torch.manual_seed(0)
    following = TensorDict(
        observation=torch.randn(size, 3, dtype=dtype),
        reward=torch.randn(size, outputs, dtype=dtype),
        terminated=torch.rand(size, 1) < 0.3,
        batch_size=size,
    )
    action = torch.randn(size, 1, dtype=dtype)
    return TensorDict(
        observation=torch.randn(size, 3, dtype=dtype), action=action, next=following, batch_size=size
    )


@pytest.mark.parametrize("loss_function", ["l2", "smooth_l1"])
def test_loss_gradient_and_outputs_written_out(loss_function):
    batch = batch_of(6, outputs=2)
    critic = QEnsemble(3, 1, 2, 2, (8,)).double()
    loss = TDLoss(critic, deterministic(0.3), REWARD_SIGNAL, gamma=GAMMA, loss_function=loss_function)
    SoftUpdate(loss, tau=0.1)
    out = loss(batch)
    with torch.no_grad():
        following = critic(batch["next", "observation"], torch.full((6, 1), 0.3, dtype=torch.float64)).amin(0)
    y = batch["next", "reward"] + GAMMA * (~batch["next", "terminated"]).double() * following
    q = critic(batch["observation"], batch["action"])
    pairwise = {"l2": nn.functional.mse_loss, "smooth_l1": nn.functional.smooth_l1_loss}[loss_function]
    expected = sum(pairwise(q[e, :, i], y[:, i]) for e in range(2) for i in range(2))
    torch.testing.assert_close(out["loss_q"], expected, **ROUNDING)
    assert out["loss_q_reward"] == out["loss_q"]
    parameters = list(critic.parameters())
    for got, want in zip(
        torch.autograd.grad(out["loss_q"], parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(got, want, **ROUNDING)
    deviation = (q - y).abs().detach()
    torch.testing.assert_close(batch["td_error"], deviation.mean((0, 2)), **ROUNDING)
    torch.testing.assert_close(out["td_error"], deviation.mean((0, 1)), **ROUNDING)
    torch.testing.assert_close(out["q_mean"], q.detach().mean((0, 1)), **ROUNDING)
    torch.testing.assert_close(out["target_mean"], y.mean(0), **ROUNDING)
    assert [k for k, v in out.items() if v.requires_grad] == ["loss_q"]


def test_importance_weights_make_a_weighted_mean():
    batch = batch_of(6)
    loss = TDLoss(small_critic(), deterministic(), REWARD_SIGNAL, gamma=GAMMA)
    SoftUpdate(loss, tau=0.1)
    batch["_weight"] = torch.tensor([0.0, 0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    single = [loss(batch[i : i + 1].exclude("_weight"))["loss_q"] for i in (2, 4)]
    torch.testing.assert_close(loss(batch)["loss_q"], (single[0] + 3 * single[1]) / 4, **ROUNDING)


def test_only_the_critic_learns_and_targets_follow_by_polyak_average():
    policy = stochastic()
    critic = small_critic()
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    loss = TDLoss(critic, policy, REWARD_SIGNAL, gamma=GAMMA)
    updater = SoftUpdate(loss, tau=0.25)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in critic.parameters()}
    for name, value in before.items():  # the stacked initial weights are kept
        assert torch.equal(loss.critic_params[name], value)
        assert torch.equal(loss.target_critic_params[name], value)
    loss(batch_of(5))["loss_q"].backward()
    assert all(p.grad is None for p in policy.parameters())
    assert all(p.grad.abs().sum() > 0 for p in critic.parameters())
    # The call has left the targets buffers: an optimizer made now would not touch them either.
    assert {id(p) for p in loss.parameters()} == {id(p) for p in critic.parameters()}
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(1.0)
    updater.step()
    learned = dict(critic.named_parameters())
    for name, value in before.items():
        expected = value + 0.25 if name in learned else value
        torch.testing.assert_close(loss.target_critic_params[name].data, expected, **ROUNDING)


def test_next_actions_are_drawn_although_losses_switch_to_deterministic_mode():
    batch = batch_of(20_000)
    batch["next", "terminated"][:] = False
    batch["next", "reward"][:] = 0.0
    loss = TDLoss(LinearQ([1.0], [0.0]), stochastic(0.5, std=2.0), REWARD_SIGNAL, gamma=1.0)
    HardUpdate(loss, value_network_update_interval=1)
    (drawn,) = loss.targets(batch)
    # Standard errors 2 / sqrt(20000) = 0.014 and 0.01; five of them.
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.07)
    assert drawn.std().item() == pytest.approx(2.0, abs=0.05)
    policy = stochastic(0.5, std=2.0)
    many = TDLoss(LinearQ([1.0], [0.0]), policy, REWARD_SIGNAL, gamma=1.0, num_action_samples=16)
    HardUpdate(many, value_network_update_interval=1)
    # The mean of 16 actions has a quarter of the deviation, and so have the standard errors.
    assert many(batch)["target_mean"].item() == pytest.approx(0.5, abs=0.02)
    assert many.targets(batch)[0].std().item() == pytest.approx(2.0 / 4, abs=0.0125)


def test_actions_are_sampled_before_members_are_aggregated():
    """min over members of each action, then the mean: ``E min(a, -a) = -E|a| = -sqrt(2/π)``."""
    batch = batch_of(2000)
    batch["next", "terminated"][:] = False
    critic = LinearQ([1.0, -1.0], [0.0, 0.0])
    loss = TDLoss(critic, stochastic(), REWARD_SIGNAL, gamma=1.0, num_action_samples=32)
    HardUpdate(loss, value_network_update_interval=1)
    mean = (loss.targets(batch)[0] - batch["next", "reward"]).mean().item()
    # Standard error 0.6 / sqrt(64000) = 0.0024.
    assert mean == pytest.approx(-((2 / torch.pi) ** 0.5), abs=0.012)


def test_other_policy_parameters_choose_the_next_action():
    batch = batch_of(4)
    batch["next", "terminated"][:] = False
    policy = deterministic(1.0)
    other = TensorDict.from_module(deterministic(-3.0))
    for params, expected in ((None, 1.0), (other, -3.0)):
        loss = TDLoss(LinearQ([1.0], [0.0]), policy, REWARD_SIGNAL, gamma=1.0, policy_params=params)
        HardUpdate(loss, value_network_update_interval=1)
        value = loss.targets(batch)[0] - batch["next", "reward"]
        torch.testing.assert_close(value, torch.full_like(value, expected), **ROUNDING)
    assert policy.module.value.item() == 1.0


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("coef", [0.5, lambda: torch.tensor(0.5)])
def test_soft_target_adds_the_entropy(coef, samples):
    batch = batch_of(20_000)
    batch["next", "terminated"][:] = False
    loss = TDLoss(
        LinearQ([0.0], [2.0]),
        stochastic(std=3.0),
        REWARD_SIGNAL,
        gamma=1.0,
        entropy_coef=coef,
        num_action_samples=samples,
    )
    HardUpdate(loss, value_network_update_interval=1)
    value = (loss.targets(batch)[0] - batch["next", "reward"]).mean().item()
    # The log-density's deviation is sqrt(1/2), half of which enters: the standard error is 0.0025 at most.
    assert value == pytest.approx(2.0 + 0.5 * Normal(0.0, 3.0).entropy().item(), abs=0.0125)


def test_keys_can_be_renamed_and_leading_dimensions_be_several():
    batch = batch_of(6)
    loss = TDLoss(small_critic(), deterministic(), REWARD_SIGNAL, gamma=GAMMA)
    SoftUpdate(loss, tau=0.1)
    expected = loss(batch.clone())["loss_q"]
    torch.testing.assert_close(loss(batch.clone().reshape(2, 3))["loss_q"], expected, **ROUNDING)
    batch.rename_key_("action", "u")
    batch["next"].rename_key_("reward", "gain")
    gain = Signal(("next", "gain"))
    renamed = TDLoss(loss.critic, TensorDictModule(Constant(), ["observation"], ["u"]), gain, gamma=GAMMA)
    renamed.set_keys(action="u", priority="surprise")
    SoftUpdate(renamed, tau=0.1)
    out = renamed(batch)
    assert out["loss_q"] == out["loss_q_gain"] == expected
    assert batch["surprise"].shape == (6,)


def test_called_with_keywords_it_gives_the_losses():
    batch = batch_of(6)
    loss = TDLoss(small_critic(), deterministic(), REWARD_SIGNAL, gamma=GAMMA)
    SoftUpdate(loss, tau=0.1)
    entries = {"_".join(k) if isinstance(k, tuple) else k: batch[k] for k in loss.in_keys}
    values = dict(zip(loss.out_keys, loss(**entries), strict=True))
    assert values["loss_q"] == loss(batch)["loss_q"]


def test_selected_outputs_are_the_only_ones():
    loss = TDLoss(small_critic(), deterministic(), REWARD_SIGNAL)
    SoftUpdate(loss, tau=0.1)
    loss.select_out_keys("loss_q", "q_mean")
    assert set(loss(batch_of(6)).keys()) == {"loss_q", "q_mean"}


def test_state_dict_round_trip_restores_targets():
    one, two = (TDLoss(small_critic(), deterministic(), REWARD_SIGNAL) for _ in range(2))
    updaters = SoftUpdate(one, tau=0.1), SoftUpdate(two, tau=0.1)
    with torch.no_grad():
        for p in one.parameters():
            p.add_(1.0)
    updaters[0].step()
    two.load_state_dict(one.state_dict())
    batch = batch_of(5)
    assert two(batch)["target_mean"] == one(batch)["target_mean"]
    assert two(batch)["loss_q"] == one(batch)["loss_q"]


@pytest.mark.parametrize("columns", [2, 3])
def test_wrong_number_of_columns_is_named(columns):
    loss = TDLoss(small_critic(), deterministic(), REWARD_SIGNAL)
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match="one column per output"):
        loss(batch_of(4, outputs=columns))


@pytest.mark.parametrize("signals", [(REWARD_SIGNAL, COST_SIGNAL), (REWARD_SIGNAL,)])
def test_wrong_number_of_signals_is_named(signals):
    pair = CriticPair(small_critic(), CriticPair(small_critic(), small_critic()))
    critic = small_critic() if len(signals) == 2 else pair
    loss = TDLoss(critic, deterministic(), signals)
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match=r"tensor\(s\) for . signal\(s\): reward"):
        loss(batch_of(4))


def test_missing_entries_are_named():
    loss = TDLoss(small_critic(), deterministic(), COST_SIGNAL)
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(KeyError, match="cost"):
        loss(batch_of(4))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"signals": ()}, "at least one"),
        ({"signals": (REWARD_SIGNAL, REWARD_SIGNAL)}, "name of its own"),
        ({"num_action_samples": 0}, "num_action_samples=0"),
        ({"num_action_samples": 2}, "get_dist"),
        ({"entropy_coef": 0.1}, "get_dist"),
        ({"loss_function": "huber"}, "smooth_l1"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TDLoss(Table(), deterministic(), **kwargs)


def test_an_entropy_that_no_signal_would_use_is_refused():
    with pytest.raises(ValueError, match=r"soft=True, got \['cost'\]"):
        TDLoss(Table(), stochastic(), COST_SIGNAL, entropy_coef=0.1)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"aggregate": "median"}, "median"), ({"std_coef": -1.0}, "std_coef=-1.0")]
)
def test_bad_signals_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Signal(keys.COST, **kwargs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("costs", [1, 3])
@pytest.mark.parametrize(
    ("reward", "cost", "options"),
    [
        ({}, {}, {}),
        ({"aggregate": "mean"}, {"aggregate": "conservative", "std_coef": 0.7}, {}),
        ({}, {}, {"num_action_samples": 4, "loss_function": "smooth_l1"}),
        ({}, {}, {"entropy_coef": 0.3}),
        ({"bootstrap_terminal": True}, {}, {}),
        ({}, {"bootstrap_terminal": True}, {"weights": True}),
    ],
    ids=["defaults", "aggregates", "samples", "soft", "bootstrap-reward", "bootstrap-cost-weighted"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_loss_and_gradient_are_those_of_two_losses(fused, reward, cost, options, costs, device):
    torch.manual_seed(0)
    bounds = {"action_low": [-1.0, -2.0], "action_high": [1.0, 2.0]}
    settings = {"hidden_sizes": (12, 8), **bounds}
    parts = QEnsemble(3, 2, 2, **settings), QEnsemble(3, 2, 3, costs, **settings)
    both = ConstrainedQEnsemble(3, 2, 2, 3, costs, **settings) if fused else CriticPair(*parts)
    both, *parts = (critic.double().to(device) for critic in (both, *parts))
    if fused:
        for part, members in zip(parts, (slice(0, 2), slice(2, 5)), strict=True):
            for name, value in part.named_parameters():
                whole = both.ensemble.get_parameter(name)[members]
                value.data = whole[..., : value.shape[-1]].detach().clone()
    policy = gaussian_policy(3, *bounds.values(), hidden_sizes=(8,)).double().to(device)
    following = {"observation": torch.randn(6, 3), "reward": torch.randn(6, 1), "cost": torch.rand(6, costs)}
    transitions = {"observation": torch.randn(6, 3), "action": torch.randn(6, 2), "next": following}
    batch = TensorDict(transitions, [6], device=device).double().auto_batch_size_()
    batch["next", "terminated"] = (torch.arange(6, device=device) % 3 == 0).unsqueeze(-1)
    options = {"gamma": GAMMA, **options}
    if options.pop("weights", False):
        batch["_weight"] = torch.linspace(0.1, 1.0, 6, dtype=torch.float64, device=device)
    signals = dataclasses.replace(REWARD_SIGNAL, **reward), dataclasses.replace(COST_SIGNAL, **cost)
    cost_options = {**options, "entropy_coef": 0.0}  # the costs' target is not soft
    losses = [
        TDLoss(both, policy, signals, **options),
        TDLoss(parts[0], policy, signals[0], **options),
        TDLoss(parts[1], policy, signals[1], **cost_options),
    ]

    def evaluate(loss):
        SoftUpdate(loss, tau=0.1)
        loss.zero_grad()
        torch.manual_seed(3)  # the same next actions
        out = loss(batch)
        out["loss_q"].backward()
        gradients = [parameter.grad.clone() for parameter in loss.parameters()]
        return out, batch["td_error"], gradients

    (out, priority, gradients), *separate = (evaluate(loss) for loss in losses)
    for name, (part, *_) in zip(("loss_q_reward", "loss_q_cost"), separate, strict=True):
        torch.testing.assert_close(out[name], part["loss_q"].detach(), **ROUNDING)
    torch.testing.assert_close(out["loss_q"], out["loss_q_reward"] + out["loss_q_cost"], **ROUNDING)
    for name in ("td_error", "q_mean", "target_mean"):
        expected = torch.cat([part[name] for part, *_ in separate])
        torch.testing.assert_close(out[name], expected, **ROUNDING)
    weighted = (2 * separate[0][1] + 3 * costs * separate[1][1]) / (2 + 3 * costs)
    torch.testing.assert_close(priority, weighted, **ROUNDING)
    if fused:
        pieces = zip(gradients, separate[0][2], separate[1][2], strict=True)
        for whole, of_reward, of_cost in pieces:
            torch.testing.assert_close(whole[:2, ..., : of_reward.shape[-1]], of_reward, **ROUNDING)
            torch.testing.assert_close(whole[2:], of_cost, **ROUNDING)
    else:
        for whole, part in zip(gradients, separate[0][2] + separate[1][2], strict=True):
            torch.testing.assert_close(whole, part, **ROUNDING)


def test_the_smoothed_action_is_seen_by_every_signal():
    reward, cost = LinearQ([1.0], [0.0]), LinearQ([2.0], [0.0])
    loss = TDLoss(CriticPair(reward, cost), deterministic(0.5), gamma=1.0, smooth_action=lambda a: a + 1.0)
    HardUpdate(loss, value_network_update_interval=1)
    batch = batch_of(6)
    batch["next", "terminated"][:] = False
    batch["next", "cost"] = batch["next", "reward"]
    targets = loss.targets(batch)
    for target, slope in zip(targets, (1.0, 2.0), strict=True):
        torch.testing.assert_close(target, batch["next", "reward"] + slope * 1.5, **ROUNDING)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", [gaussian_policy, tanh_gaussian_policy, deterministic_policy])
def test_what_follows_a_terminal_state_may_be_nan(kind, samples):
    """Policy, critic and target see none of it, and the other transitions' targets stay as they are."""
    if kind is deterministic_policy and samples > 1:
        pytest.skip("has no distribution to draw from")
    torch.manual_seed(0)
    policy = kind(3, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
    critic = ConstrainedQEnsemble(3, 2, 2, 1, hidden_sizes=(8,))
    entropy = 0.1 if kind is tanh_gaussian_policy else 0.0
    loss = TDLoss(critic, policy, num_action_samples=samples, entropy_coef=entropy)
    SoftUpdate(loss, tau=0.1)
    following = TensorDict(
        observation=torch.randn(4, 3),
        reward=torch.ones(4, 1),
        cost=torch.ones(4, 1),
        terminated=torch.tensor([[True], [False], [True], [False]]),
        batch_size=4,
    )
    batch = TensorDict(observation=torch.randn(4, 3), action=torch.randn(4, 2), next=following, batch_size=4)
    damaged = batch.clone()
    damaged["next", "observation"][::2] = torch.nan
    targets = []
    for data in (batch, damaged):
        torch.manual_seed(1)
        targets.append(loss.targets(data))
    torch.testing.assert_close(*targets, rtol=0, atol=0)
    assert all(target[::2].eq(1.0).all() for target in targets[1])
    assert bool(damaged["next", "observation"][0].isnan().all())  # the batch is left as it was
    assert bool(loss(damaged)["loss_q"].isfinite())


def test_a_signal_that_bootstraps_the_terminal_state_reads_it():
    torch.manual_seed(0)
    signals = (REWARD_SIGNAL, Signal(keys.COST, aggregate="mean", bootstrap_terminal=True))
    critic = ConstrainedQEnsemble(3, 2, 2, 1, hidden_sizes=(8,))
    policy = deterministic_policy(3, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
    loss = TDLoss(critic, policy, signals, gamma=GAMMA)
    SoftUpdate(loss, tau=0.1)
    following = TensorDict(
        observation=torch.randn(4, 3),
        reward=torch.ones(4, 1),
        cost=torch.ones(4, 1),
        terminated=torch.ones(4, 1, dtype=torch.bool),
        batch_size=4,
    )
    batch = TensorDict(observation=torch.zeros(4, 3), action=torch.zeros(4, 2), next=following, batch_size=4)
    reward, cost = loss.targets(batch)
    assert reward.eq(1.0).all()
    with torch.no_grad():
        action = policy.module[0](following["observation"])
        expected = 1.0 + GAMMA * critic(following["observation"], action)[1].mean(0)
    torch.testing.assert_close(cost, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_importance_weights_that_are_all_zero_give_a_loss_of_zero(reduction):
    torch.manual_seed(0)
    critic = ConstrainedQEnsemble(3, 2, 2, 1, hidden_sizes=(8,))
    policy = deterministic_policy(3, [-1.0, -1.0], [1.0, 1.0], hidden_sizes=(8,))
    loss = TDLoss(critic, policy, reduction=reduction)
    SoftUpdate(loss, tau=0.1)
    following = TensorDict(
        observation=torch.randn(4, 3),
        reward=torch.ones(4, 1),
        cost=torch.ones(4, 1),
        terminated=torch.zeros(4, 1, dtype=torch.bool),
        batch_size=4,
    )
    batch = TensorDict(observation=torch.randn(4, 3), action=torch.randn(4, 2), next=following, batch_size=4)
    weighted = {}
    for weight in (torch.zeros(4), torch.tensor([0.0, 2.0, 0.5, 0.0])):
        batch["_weight"] = weight
        value = loss(batch)["loss_q"]
        value.sum().backward()
        weighted[float(weight.sum())] = value.detach()
        if not weight.any():
            assert not value.any()
            assert not any(parameter.grad.any() for parameter in loss.parameters())
    single = TDLoss(critic, policy, reduction="none")
    SoftUpdate(single, tau=0.1)
    each = single(batch)["loss_q"].detach()
    total = each.sum() / 2.5 if reduction == "mean" else each.sum() if reduction == "sum" else each
    torch.testing.assert_close(weighted[2.5], total)
    assert bool(each[1] > 0)
    assert not bool(each[0])
