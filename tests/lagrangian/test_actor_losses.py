"""Actor losses against those of TorchRL, finite differences and sums written by hand."""

import math

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import Actor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import DDPGLoss, SACLoss, SoftUpdate, TD3Loss

from safe_components.critics import REWARD_SIGNAL, ConstrainedQEnsemble, QEnsemble, TDLoss
from safe_components.lagrangian import (
    CostBudget,
    DeterministicLagLoss,
    GradientMultiplier,
    PIDMultiplier,
    SACLagLoss,
    augmented_multiplier,
)
from safe_components.policies import deterministic_policy, tanh_gaussian_policy

DOUBLE = torch.float64
LOW, HIGH = [-1.0, 0.0], [1.0, 3.0]
LAM = [0.7, 1.9]


class Net(nn.Module):
    """``Q(s, a)`` of one member, as TorchRL's losses take it."""

    def __init__(self, outputs=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))

    def forward(self, observation, action):
        return self.layers(torch.cat([observation, action], -1))


class Members(nn.Module):
    """The same networks stacked: ``[E, B, outputs]``."""

    def __init__(self, *nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, observation, action):
        return torch.stack([net(observation, action) for net in self.nets])


class Pair(nn.Module):
    """A critic of the reward and one of the costs, as the losses here take them."""

    def __init__(self, reward, cost):
        super().__init__()
        self.reward, self.cost = reward, cost

    def forward(self, observation, action):
        return self.reward(observation, action), self.cost(observation, action)


class Line(nn.Module):
    """``Q_e(s, a)_i = weight[e, i] * a_0 + offset[e, i]``."""

    def __init__(self, weight, offset):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=DOUBLE).unsqueeze(1))
        self.offset = nn.Parameter(torch.tensor(offset, dtype=DOUBLE).unsqueeze(1))

    def forward(self, observation, action):
        return self.weight * action[..., :1] + self.offset


def squashed(dtype=DOUBLE, device="cpu"):
    policy = tanh_gaussian_policy(4, LOW, HIGH, hidden_sizes=(8,), activation=nn.Tanh)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return policy.to(device).to(dtype)


def deterministic(dtype=DOUBLE, device="cpu"):
    policy = deterministic_policy(4, LOW, HIGH, hidden_sizes=(8,), activation=nn.Tanh)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return policy.to(device).to(dtype)


def states(n=16, dtype=DOUBLE, device="cpu"):
    return TensorDict(observation=torch.randn(n, 4, dtype=dtype, device=device), batch_size=n)


def transitions(n=32, dtype=DOUBLE):
    batch = states(n, dtype)
    batch["action"] = torch.rand(n, 2, dtype=dtype)
    terminated = torch.rand(n, 1) < 0.3
    batch["next"] = TensorDict(
        observation=torch.randn(n, 4, dtype=dtype),
        reward=torch.randn(n, 1, dtype=dtype),
        terminated=terminated,
        done=terminated | (torch.rand(n, 1) < 0.2),
        batch_size=n,
    )
    return batch


def soft_td(critic, policy, gamma, entropy_coef):
    """The loss of a reward critic whose targets include the entropy."""
    return attached(TDLoss(critic, policy, REWARD_SIGNAL, gamma=gamma, entropy_coef=entropy_coef))


def fixed(values):
    lam = torch.tensor(values, dtype=DOUBLE)
    return lambda: lam


def attached(loss):
    """Attach the updater that TorchRL requires of losses with target parameters."""
    SoftUpdate(loss, tau=0.1)
    return loss


def learnable(params):
    return [p for p in params.values(True, True) if p.requires_grad]


def lag(*args, **kwargs):
    return attached(DeterministicLagLoss(*args, **kwargs))


def gradient(loss, policy):
    return torch.autograd.grad(loss, list(policy.parameters()))


def ensemble(outputs=2, members=3, dtype=DOUBLE, device="cpu"):
    return QEnsemble(4, 2, members, outputs, hidden_sizes=(8,), activation=nn.Tanh).to(device, dtype)


def random_critic(rewards=1, costs=2):
    return Pair(ensemble(rewards), ensemble(costs))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_without_multiplier_it_is_torchrls_sac(dtype, normalize):
    torch.manual_seed(0)
    policy, nets = squashed(dtype), [Net().to(dtype) for _ in range(2)]
    values = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    theirs = SACLoss(policy, values, alpha_init=0.3, target_entropy=-1.5, loss_function="l2")
    attached(theirs).to(dtype)
    ours = SACLagLoss(
        policy,
        Pair(Members(*nets), ensemble(dtype=dtype)),
        fixed([0.0, 0.0]),
        init_alpha=0.3,
        target_entropy=-1.5,
        normalize=normalize,
    ).to(dtype)
    batch = states(dtype=dtype)
    torch.manual_seed(1)
    expected, meta = theirs.actor_loss(batch)
    torch.manual_seed(1)
    out = ours(batch)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == DOUBLE else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(out["loss_actor"], expected, **tolerance)
    torch.testing.assert_close(out["entropy"], -meta["log_prob"].mean(), **tolerance)
    theirs_alpha = theirs.alpha_loss(meta["log_prob"]).mean()
    torch.testing.assert_close(out["loss_alpha"], theirs_alpha, **tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(out["loss_alpha"], ours.log_alpha),
        torch.autograd.grad(theirs_alpha, theirs.log_alpha),
        **tolerance,
    )
    theirs_gradient = torch.autograd.grad(expected, learnable(theirs.actor_network_params))
    ours_gradient = torch.autograd.grad(out["loss_actor"], learnable(ours.policy_params))
    torch.testing.assert_close(ours_gradient, theirs_gradient, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_without_multiplier_it_is_torchrls_td3_and_ddpg(dtype):
    torch.manual_seed(0)
    policy, nets = deterministic(dtype), [Net().to(dtype) for _ in range(2)]
    values = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    batch = states(dtype=dtype)
    td3 = attached(TD3Loss(policy, values, bounds=(torch.tensor(LOW), torch.tensor(HIGH))))
    ddpg = attached(DDPGLoss(policy, values[0]))
    cases = [
        (td3.actor_loss(batch)[0], td3.actor_network_params, nets),
        (ddpg.loss_actor(batch)[0], ddpg.actor_network_params, nets[:1]),
    ]
    for expected, params, members in cases:
        ours = lag(policy, Pair(Members(*members), ensemble(dtype=dtype)), fixed([0.0, 0.0]))
        out = ours(batch)
        tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == DOUBLE else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(out["loss_actor"], expected, **tolerance)
        torch.testing.assert_close(
            torch.autograd.grad(out["loss_actor"], learnable(ours.policy_params)),
            torch.autograd.grad(expected, learnable(params)),
            **tolerance,
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["sac", "deterministic"])
def test_loss_equals_its_sum_by_hand(kind, normalize, dtype, device):
    torch.manual_seed(0)
    policy = (squashed if kind == "sac" else deterministic)(dtype, device)
    reward, cost = ensemble(1, 2, dtype, device), ensemble(2, 3, dtype, device)
    make = SACLagLoss if kind == "sac" else lag
    options = {"init_alpha": 0.4} if kind == "sac" else {"reward_aggregate": "min"}
    loss = make(
        policy, Pair(reward, cost), fixed(LAM), cost_aggregate="max", normalize=normalize, **options
    ).to(device, dtype)
    batch = states(dtype=dtype, device=device)
    torch.manual_seed(1)
    out = loss(batch)
    torch.manual_seed(1)
    if kind == "sac":
        dist = policy.get_dist(batch)
        action, log_prob = dist.rsample_and_log_prob()
    else:
        action, log_prob = policy(batch.clone())["action"], 0.0
    q_reward, q_cost = (
        reward(batch["observation"], action).amin(0)[:, 0],
        cost(batch["observation"], action).amax(0),
    )
    total = 0.4 * log_prob - q_reward + LAM[0] * q_cost[:, 0] + LAM[1] * q_cost[:, 1]
    expected = total.mean() / (1 + sum(LAM) if normalize else 1)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == DOUBLE else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(out["loss_actor"], expected, **tolerance)
    torch.testing.assert_close(gradient(out["loss_actor"], policy), gradient(expected, policy), **tolerance)
    torch.testing.assert_close(out["q_reward"], q_reward.mean(), **tolerance)
    torch.testing.assert_close(out["q_cost"], q_cost.mean(0), **tolerance)
    assert out["lam"].tolist() == pytest.approx(LAM)
    assert out["lam_effective"].tolist() == pytest.approx(LAM)
    assert {value.dtype for value in out.values()} == {dtype}
    assert set(out.keys()) == set(loss.out_keys)
    learnt = {"loss_actor", "loss_alpha"} & set(loss.out_keys)
    assert {name for name, value in out.items() if value.requires_grad} == learnt


@pytest.mark.parametrize("kind", ["sac", "deterministic"])
def test_gradient_equals_finite_differences(kind):
    torch.manual_seed(0)
    policy = (squashed if kind == "sac" else deterministic)()
    make = SACLagLoss if kind == "sac" else lag
    loss = make(policy, random_critic(), fixed(LAM), cost_aggregate="conservative")
    loss.to(DOUBLE)
    batch, parameters = states(), list(policy.parameters())

    def value():
        torch.manual_seed(1)
        return loss(batch)["loss_actor"]

    direction, step = [torch.randn_like(p) for p in parameters], 1e-5
    slope = sum((g * d).sum() for g, d in zip(gradient(value(), policy), direction, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
            values.append(value())
    # Central differences: error of order step^2 times the third derivative.
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-6, atol=1e-7)


def test_augmented_term_by_hand():
    # Limits 5 and 3, lambda 1 and 2, c = 10: mean costs 5.2 and 2.9 give 1 + 2 and 2 - 1; 4 gives [1 - 10]_+.
    q_cost = torch.tensor([[5.0, 2.7], [5.4, 3.1]], dtype=DOUBLE)
    lam, limit = torch.tensor([1.0, 2.0], dtype=DOUBLE), torch.tensor([5.0, 3.0], dtype=DOUBLE)
    assert augmented_multiplier(lam, q_cost, limit, 10.0).tolist() == pytest.approx([3.0, 1.0])
    assert augmented_multiplier(lam, q_cost - 1.2, limit, 10.0).tolist() == pytest.approx([0.0, 0.0])
    assert augmented_multiplier(lam, q_cost, limit, 0.0).tolist() == [1.0, 2.0]
    # As the authors write it: lam - min(lam, c mean(d - Q)).
    for shift in (-0.3, -0.1, 0.0, 0.4):
        rect = torch.minimum(lam, 10.0 * (limit - q_cost - shift).mean(0))
        expected = (lam - rect).tolist()
        assert augmented_multiplier(lam, q_cost + shift, limit, 10.0).tolist() == pytest.approx(expected)


def test_cal_by_hand():
    """Action 0.5: cost members 1, 3, 5, 7 times 0.5 have mean 2, deviation sqrt(5)/2."""
    policy = TensorDictModule(nn.Linear(4, 1).double(), ["observation"], ["action"])
    with torch.no_grad():
        policy.module.weight.zero_()
        policy.module.bias.fill_(0.5)
    cost = Line([[1.0], [3.0], [5.0], [7.0]], [[0.0]] * 4)
    upper = 2.0 + 0.5 * math.sqrt(5) / 2
    loss = lag(
        policy,
        Pair(Line([[2.0]], [[0.0]]), cost),
        fixed([0.2]),
        cost_aggregate="conservative",
        std_coef=0.5,
        augmentation=4.0,
        q_cost_limit=[2.5],
    )
    weight = 0.2 + 4.0 * (upper - 2.5)
    out = loss(states())
    assert out["q_cost"].item() == pytest.approx(upper)
    assert out["lam_effective"].item() == pytest.approx(weight)
    assert out["lam"].item() == pytest.approx(0.2)
    assert out["loss_actor"].item() == pytest.approx((-1.0 + weight * upper) / (1 + weight))
    (slope,) = torch.autograd.grad(out["loss_actor"], policy.module.bias)
    # d/da of -2 a + weight (4 + sqrt(5) / 2) a, the weight held constant; upper is the bracket times 0.5.
    assert slope.item() == pytest.approx((-2.0 + weight * 2 * upper) / (1 + weight))


@pytest.mark.parametrize("excess", [-3.0, -0.02, 0.5])
def test_augmented_gradient_is_that_of_the_augmented_lagrangian(excess):
    """``-Q_r + ([lam + c (Q_c - d)]_+^2 - lam^2) / 2c`` differentiated by autograd, two costs."""
    torch.manual_seed(0)
    policy, reward, cost = deterministic(), ensemble(1, 1), ensemble(2, 4)
    batch, c, lam = states(), 5.0, torch.tensor(LAM, dtype=DOUBLE)
    action = policy(batch.clone())["action"]
    q_cost = cost(batch["observation"], action).mean(0).mean(0)
    limit = (q_cost - excess * torch.tensor([1.0, 0.5])).detach()
    penalty = ((lam + c * (q_cost - limit)).clamp_min(0).square() - lam.square()).sum() / (2 * c)
    expected = gradient(-reward(batch["observation"], action).mean() + penalty, policy)
    loss = lag(policy, Pair(reward, cost), fixed(LAM), normalize=False, augmentation=c, q_cost_limit=limit)
    torch.testing.assert_close(gradient(loss(batch)["loss_actor"], policy), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["sac", "deterministic"])
def test_critic_and_multiplier_stay_with_the_caller(kind):
    torch.manual_seed(0)
    policy = (squashed if kind == "sac" else deterministic)()
    critic = random_critic()
    multiplier = PIDMultiplier([1.0, 1.0], kp=0.0, ki=1.0, kd=0.0)
    multiplier.update([1.5, 3.0])
    make = SACLagLoss if kind == "sac" else lag
    loss = make(policy, critic, multiplier)
    batch = states()
    loss(batch)["loss_actor"].backward()
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    assert all(p.grad.abs().sum() > 0 for p in policy.parameters())
    own = {p.data_ptr() for p in loss.parameters()}
    theirs = {p.data_ptr() for p in critic.parameters()}
    assert not own & theirs
    assert {p.data_ptr() for p in policy.parameters()} <= own
    assert not any("critic" in name or "multiplier" in name for name in loss.state_dict())
    # The next call sees the changes that the caller makes.
    torch.manual_seed(1)
    before = loss(batch)
    multiplier.update([1.5, 3.0])
    with torch.no_grad():
        critic.reward.bias_1.add_(1.0)
    torch.manual_seed(1)
    after = loss(batch)
    assert before["lam"].tolist() == [0.5, 2.0]
    assert after["lam"].tolist() == [1.0, 4.0]
    torch.testing.assert_close(after["q_reward"], before["q_reward"] + 1.0)
    assert list(batch.keys()) == ["observation"]


def test_soft_targets_with_this_temperature_are_torchrls_sac():
    torch.manual_seed(0)
    policy, nets = squashed(), [Net().double() for _ in range(2)]
    values = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    theirs = SACLoss(policy, values, alpha_init=0.3, target_entropy=-1.5, loss_function="l2").double()
    theirs.make_value_estimator(gamma=0.9)
    attached(theirs)
    actor = SACLagLoss(policy, Pair(Members(*nets), ensemble()), fixed([0.0, 0.0]), init_alpha=0.3)
    ours = soft_td(Members(*nets), policy, 0.9, lambda: actor.alpha)
    batch = transitions()
    torch.manual_seed(1)
    expected, _ = theirs.qvalue_v2_loss(batch)
    torch.manual_seed(1)
    # alpha is a float32 scalar in both
    torch.testing.assert_close(ours(batch)["loss_q"], expected, rtol=1e-6, atol=1e-6)


def test_saturated_actions_keep_their_score():
    """At 20 deviations, tanh is 1 in float32: the score is that of the draw, not of the action inverted."""

    class Far(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.full((2,), 20.0))

        def forward(self, observation):
            loc = self.loc.expand(len(observation), 2)
            return loc, torch.full_like(loc, 0.1)

    policy = ProbabilisticActor(
        TensorDictModule(Far(), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    critic = ensemble(1, dtype=torch.float32)
    out = SACLagLoss(policy, Pair(critic, critic), fixed([0.0]))(states(4000, dtype=torch.float32))
    # Entropy of a = tanh u: H(u) + E log(1 - tanh^2 u), the latter about 2 log 2 - 2 u at this distance.
    per_action = 0.5 * math.log(2 * math.pi * math.e * 0.01) + 2 * math.log(2) - 40.0
    # Standard error of a mean of 4000 draws of 2 * 2 * u: 4 * 0.1 / sqrt(2 * 4000) and the density's: < 0.01.
    assert out["entropy"].item() == pytest.approx(2 * per_action, abs=0.05)
    batch = transitions(4000, torch.float32)
    batch["next", "reward"].zero_()
    batch["next", "terminated"].zero_()
    value = critic(batch["next", "observation"], torch.ones(4000, 2)).amin(0).mean()
    soft = soft_td(critic, policy, 1.0, 1.0)
    assert soft(batch)["target_mean"].item() == pytest.approx((value + 2 * per_action).item(), abs=0.1)


@pytest.mark.parametrize(("target", "entropy"), [("auto", -2.0), (0.5, 0.5)])
def test_temperature_rises_below_the_target_entropy_and_falls_above(target, entropy):
    torch.manual_seed(0)
    policy = squashed()
    loss = SACLagLoss(policy, random_critic(), fixed(LAM), target_entropy=target)
    out = loss(states())
    slope = torch.autograd.grad(out["loss_alpha"], loss.log_alpha)[0]
    # d loss / d log alpha = H(policy) - H(target), so descent raises alpha where entropy is missing.
    assert slope.item() == pytest.approx(out["entropy"].item() - entropy, rel=1e-5)


def test_a_temperature_without_target_is_constant():
    torch.manual_seed(0)
    loss = SACLagLoss(squashed(), random_critic(), fixed(LAM), target_entropy=None, init_alpha=0.25)
    out = loss(states())
    assert out["loss_alpha"].item() == 0.0
    assert not out["loss_alpha"].requires_grad
    assert out["alpha"].item() == pytest.approx(0.25)
    assert not any("alpha" in name for name, _ in loss.named_parameters())
    assert "log_alpha" in loss.state_dict()


def test_target_actor_follows_the_actor():
    torch.manual_seed(0)
    policy = deterministic()
    loss = DeterministicLagLoss(policy, random_critic(), fixed(LAM))
    updater = SoftUpdate(loss, tau=0.25)
    before = [p.clone() for p in policy.parameters()]
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    updater.step()
    targets = list(loss.target_policy_params.values(True, True))
    sizes = {tuple(p.shape): p for p in targets if p.ndim == 2}
    for p in before:
        if p.ndim == 2:
            torch.testing.assert_close(sizes[tuple(p.shape)], p + 0.25)
    assert not any(p.requires_grad for p in targets)


@pytest.mark.parametrize("make", [lambda: GradientMultiplier(LAM, lr=0.1), lambda: PIDMultiplier(LAM)])
def test_both_multipliers_fit_in(make):
    torch.manual_seed(0)
    multiplier = make()
    multiplier.update([2.0, 3.0])
    loss = lag(deterministic(), random_critic(), multiplier)
    assert loss(states())["lam"].tolist() == pytest.approx(multiplier.lam.tolist())
    assert (multiplier.lam > 0).all()


def test_called_with_keywords_and_several_leading_dimensions():
    torch.manual_seed(0)
    loss = lag(deterministic(), random_critic(), fixed(LAM))
    batch = states(6)
    expected = loss(batch)["loss_actor"]
    values = dict(zip(loss.out_keys, loss(observation=batch["observation"]), strict=True))
    torch.testing.assert_close(values["loss_actor"], expected)
    torch.testing.assert_close(loss(batch.reshape(2, 3))["loss_actor"], expected)


@pytest.mark.parametrize("tied", ["module", "parameter", "name"])
def test_a_critic_that_shares_weights_is_left_as_it_was(tied):
    torch.manual_seed(0)
    reward = cost = ensemble(1)
    if tied == "parameter":
        cost = ensemble(1)
        cost.weight_0 = reward.weight_0
    if tied == "name":
        reward = Line([[1.0]], [[0.0]])
        reward.offset = reward.weight
    critic = Pair(reward, cost)
    before = list(critic.parameters())
    out = lag(deterministic(), critic, fixed([1.0]))(states())
    out["loss_actor"].backward()
    assert all(p is q for p, q in zip(critic.parameters(), before, strict=True))
    assert all(p.requires_grad and p.grad is None for p in critic.parameters())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["sac", "deterministic"])
def test_without_costs_the_loss_is_that_of_the_reward(kind, normalize):
    torch.manual_seed(0)
    policy = (squashed if kind == "sac" else deterministic)()
    make = SACLagLoss if kind == "sac" else lag

    class NoCosts(Pair):
        def forward(self, observation, action):
            q_reward, q_cost = super().forward(observation, action)
            return q_reward, q_cost[..., :0]

    critic, losses = random_critic(), []
    for critic_, lam in ((NoCosts(critic.reward, critic.cost), []), (critic, [0.0, 0.0])):
        torch.manual_seed(1)
        losses.append(make(policy, critic_, fixed(lam), normalize=normalize)(states()))
    assert losses[0]["q_cost"].shape == losses[0]["lam"].shape == (0,)
    torch.testing.assert_close(losses[0]["loss_actor"], losses[1]["loss_actor"])


def test_a_budget_tightened_in_place_is_seen_by_the_augmented_loss():
    torch.manual_seed(0)
    feedback = GradientMultiplier([1.0, 4.0], lr=1.0)
    budget = CostBudget([1.0, 4.0], gamma=1.0, episode_length=10, feedback=feedback)
    loss = lag(deterministic(), random_critic(), fixed(LAM), augmentation=0.1, q_cost_limit=budget.q_limit)
    batch = states()
    q_cost = loss(batch)["q_cost"]
    for excess in (0.0, 1.0):
        budget.observe(torch.tensor([[1.0 + excess, 4.0]]), frames=0)
        expected = torch.tensor(LAM, dtype=DOUBLE)
        expected = expected + 0.1 * (q_cost - torch.tensor([1.0 / (1.0 + excess), 4.0]))
        assert (expected > 0).all()
        torch.testing.assert_close(loss(batch)["lam_effective"], expected)


@pytest.mark.parametrize(
    ("make", "policy"), [(SACLagLoss, squashed), (lag, deterministic)], ids=["sac", "td3"]
)
def test_a_standard_deviation_without_weight_leaves_the_mean(make, policy):
    torch.manual_seed(0)
    policy, critic, batch = policy(), random_critic(), states()
    values = []
    for how, coef in (("conservative", 0.0), ("mean", 0.5)):
        torch.manual_seed(1)
        loss = make(policy, critic, fixed(LAM), reward_aggregate=how, cost_aggregate=how, std_coef=coef)
        values.append(loss(batch)["loss_actor"])
    torch.testing.assert_close(*values)


def test_the_limits_belong_to_their_owner_and_not_to_the_loss():
    loss = lag(deterministic(), random_critic(), fixed(LAM), augmentation=1.0, q_cost_limit=[1.0, 2.0])
    assert loss.q_cost_limit.tolist() == [1.0, 2.0]
    assert not [name for name in loss.state_dict() if "limit" in name]


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (SACLagLoss, {"policy": "deterministic"}, "get_dist.*DeterministicLagLoss"),
        (DeterministicLagLoss, {"policy": "sac"}, "SACLagLoss"),
        (SACLagLoss, {"init_alpha": 0.0}, "init_alpha=0.0"),
        (SACLagLoss, {"init_alpha": math.inf}, "init_alpha=inf"),
        (SACLagLoss, {"target_entropy": "none"}, "target_entropy='none'"),
        (SACLagLoss, {"reward_aggregate": "median"}, "median"),
        (SACLagLoss, {"cost_aggregate": "median"}, "median"),
        (SACLagLoss, {"std_coef": -1.0}, "std_coef=-1.0"),
        (SACLagLoss, {"std_coef": math.inf}, "std_coef=inf"),
        (DeterministicLagLoss, {"augmentation": -1.0}, "augmentation=-1.0"),
        (DeterministicLagLoss, {"augmentation": math.inf, "q_cost_limit": [1.0]}, "augmentation=inf"),
        (DeterministicLagLoss, {"augmentation": 1.0}, "needs q_cost_limit"),
        (SACLagLoss, {"augmentation": 1.0, "q_cost_limit": [math.nan]}, r"^q_cost_limit=\[nan\]"),
    ],
)
def test_bad_settings_are_named(make, kwargs, message):
    kind = kwargs.pop("policy", "sac" if make is SACLagLoss else "deterministic")
    policy = squashed() if kind == "sac" else deterministic()
    with pytest.raises(ValueError, match=message):
        make(policy, random_critic(), fixed(LAM), **kwargs)


@pytest.mark.parametrize(
    ("reward", "cost", "lam", "kwargs", "message"),
    [
        (2, 2, LAM, {}, "one reward output, it has 2"),
        (1, 2, [1.0], {}, "2 cost outputs, multiplier 1"),
        (1, 1, LAM, {}, "1 cost outputs, multiplier 2"),
        (1, 2, LAM, {"augmentation": 1.0, "q_cost_limit": [1.0]}, "1 limits for 2 costs"),
    ],
)
def test_numbers_of_costs_that_differ_are_named(reward, cost, lam, kwargs, message):
    loss = lag(deterministic(), random_critic(reward, cost), fixed(lam), **kwargs)
    with pytest.raises(ValueError, match=message):
        loss(states())


def test_a_critic_that_returns_one_tensor_is_named():
    # Two members would otherwise be unpacked as reward and cost.
    loss = lag(deterministic(), ensemble(1, 2), fixed([1.0]))
    with pytest.raises(ValueError, match=r"must return .*got Tensor"):
        loss(states())


def test_the_deterministic_actor_of_torchrl_has_no_distribution_to_draw_from():
    """Its ``get_dist`` returns a single point, so it belongs to the deterministic loss."""
    actor = Actor(nn.Linear(3, 2))
    critic = ConstrainedQEnsemble(3, 2, 1, 1, hidden_sizes=(8,))
    multiplier = GradientMultiplier(1.0, lr=0.1)
    loss = DeterministicLagLoss(actor, critic, multiplier)
    SoftUpdate(loss, tau=0.01)
    out = loss(TensorDict(observation=torch.randn(5, 3), batch_size=5))
    out["loss_actor"].backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    with pytest.raises(ValueError, match="needs a policy with a distribution"):
        SACLagLoss(actor, critic, multiplier)
