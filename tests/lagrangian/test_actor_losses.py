"""The actor losses against TorchRL's own, finite differences and sums written by hand."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import DDPGLoss, SACLoss, SoftUpdate, TD3Loss

from safe_components.critics import QEnsemble, TDLoss
from safe_components.lagrangian import (
    DeterministicLagLoss,
    GradientMultiplier,
    PIDMultiplier,
    SACLagLoss,
    augmented_multiplier,
)
from safe_components.policies import deterministic_policy, tanh_gaussian_policy

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DOUBLE = torch.float64
LOW, HIGH = [-1.0, 0.0], [1.0, 3.0]
LAM = [0.7, 1.9]


class Net(nn.Module):
    """``Q(s, a)``, one member, by separate layers as TorchRL's losses take it."""

    def __init__(self, outputs=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))

    def forward(self, observation, action):
        return self.layers(torch.cat([observation, action], -1))


class Members(nn.Module):
    """The same networks side by side, as the losses here take them: ``[E, B, outputs]``."""

    def __init__(self, *nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, observation, action):
        return torch.stack([net(observation, action) for net in self.nets])


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


def fixed(values):
    lam = torch.tensor(values, dtype=DOUBLE)
    return lambda: lam


def attached(loss):
    """With the updater that TorchRL wants wherever there are target parameters."""
    SoftUpdate(loss, tau=0.1)
    return loss


def learnable(params):
    return [p for p in params.values(True, True) if p.requires_grad]


def lag(*args, **kwargs):
    return attached(DeterministicLagLoss(*args, **kwargs))


def gradient(loss, policy):
    return torch.autograd.grad(loss, list(policy.parameters()))


def random_critic(outputs=2, members=3, dtype=DOUBLE, device="cpu"):
    return QEnsemble(4, 2, members, outputs, hidden_sizes=(8,), activation=nn.Tanh).to(device, dtype)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_without_multiplier_it_is_torchrls_sac(dtype, normalise):
    torch.manual_seed(0)
    policy, nets = squashed(dtype), [Net().to(dtype) for _ in range(2)]
    values = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    theirs = SACLoss(policy, values, alpha_init=0.3, target_entropy=-1.5, loss_function="l2")
    attached(theirs).to(dtype)
    ours = SACLagLoss(
        policy,
        Members(*nets),
        random_critic(dtype=dtype),
        fixed([0.0, 0.0]),
        init_alpha=0.3,
        target_entropy=-1.5,
        normalise=normalise,
    ).to(dtype)
    batch = transitions(dtype=dtype)
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


def test_soft_td_loss_is_torchrls_sac():
    torch.manual_seed(0)
    policy, nets = squashed(), [Net().double() for _ in range(2)]
    values = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    theirs = SACLoss(policy, values, alpha_init=0.3, target_entropy=-1.5, loss_function="l2").double()
    theirs.make_value_estimator(gamma=0.9)
    actor = SACLagLoss(policy, Members(*nets), random_critic(), fixed([0.0, 0.0]), init_alpha=0.3)
    ours = TDLoss(Members(*nets), policy, gamma=0.9, entropy_coef=lambda: actor.alpha)
    attached(ours)
    attached(theirs)
    batch = transitions()
    torch.manual_seed(1)
    expected, _ = theirs.qvalue_v2_loss(batch)
    torch.manual_seed(1)
    # alpha is a float32 scalar in both
    torch.testing.assert_close(ours(batch)["loss_q"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_without_multiplier_it_is_torchrls_td3_and_ddpg(dtype):
    torch.manual_seed(0)
    policy, nets = deterministic(dtype), [Net().to(dtype) for _ in range(2)]
    values = [ValueOperator(net, in_keys=["observation", "action"]) for net in nets]
    batch = transitions(dtype=dtype)
    td3 = attached(TD3Loss(policy, values, bounds=(torch.tensor(LOW), torch.tensor(HIGH))))
    ddpg = attached(DDPGLoss(policy, values[0]))
    cases = [
        (td3.actor_loss(batch)[0], td3.actor_network_params, nets),
        (ddpg.loss_actor(batch)[0], ddpg.actor_network_params, nets[:1]),
    ]
    for expected, params, members in cases:
        ours = lag(policy, Members(*members), random_critic(dtype=dtype), fixed([0.0, 0.0]))
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
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", ["sac", "deterministic"])
def test_loss_equals_its_sum_by_hand(kind, normalise, dtype, device):
    torch.manual_seed(0)
    policy = (squashed if kind == "sac" else deterministic)(dtype, device)
    reward, cost = random_critic(1, 2, dtype, device), random_critic(2, 3, dtype, device)
    make = SACLagLoss if kind == "sac" else lag
    options = {"init_alpha": 0.4} if kind == "sac" else {"reward_aggregate": "min"}
    loss = make(policy, reward, cost, fixed(LAM), cost_aggregate="max", normalise=normalise, **options).to(
        device, dtype
    )
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
    expected = total.mean() / (1 + sum(LAM) if normalise else 1)
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
    loss = make(policy, random_critic(1), random_critic(), fixed(LAM), cost_aggregate="conservative")
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
        Line([[2.0]], [[0.0]]),
        cost,
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
    policy, reward, cost = deterministic(), random_critic(1, 1), random_critic(2, 4)
    batch, c, lam = states(), 5.0, torch.tensor(LAM, dtype=DOUBLE)
    action = policy(batch.clone())["action"]
    q_cost = cost(batch["observation"], action).mean(0).mean(0)
    limit = (q_cost - excess * torch.tensor([1.0, 0.5])).detach()
    penalty = ((lam + c * (q_cost - limit)).clamp_min(0).square() - lam.square()).sum() / (2 * c)
    expected = gradient(-reward(batch["observation"], action).mean() + penalty, policy)
    loss = lag(policy, reward, cost, fixed(LAM), normalise=False, augmentation=c, q_cost_limit=limit)
    # Limits are kept in the default dtype, float32, until used.
    torch.testing.assert_close(gradient(loss(batch)["loss_actor"], policy), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sac", "deterministic"])
def test_critics_and_multiplier_stay_the_callers(kind):
    torch.manual_seed(0)
    policy = (squashed if kind == "sac" else deterministic)()
    reward, cost = random_critic(1), random_critic()
    multiplier = PIDMultiplier([1.0, 1.0], kp=0.0, ki=1.0, kd=0.0)
    multiplier.update([1.5, 3.0])
    make = SACLagLoss if kind == "sac" else lag
    loss = make(policy, reward, cost, multiplier)
    batch = states()
    loss(batch)["loss_actor"].backward()
    assert all(p.grad is None for critic in (reward, cost) for p in critic.parameters())
    assert all(p.requires_grad for critic in (reward, cost) for p in critic.parameters())
    assert all(p.grad.abs().sum() > 0 for p in policy.parameters())
    own = {p.data_ptr() for p in loss.parameters()}
    theirs = {p.data_ptr() for critic in (reward, cost) for p in critic.parameters()}
    assert not own & theirs
    assert {p.data_ptr() for p in policy.parameters()} <= own
    assert not any("critic" in name or "multiplier" in name for name in loss.state_dict())
    # What the caller changes is what the next call sees.
    torch.manual_seed(1)
    before = loss(batch)
    multiplier.update([1.5, 3.0])
    with torch.no_grad():
        reward.bias_1.add_(1.0)
    torch.manual_seed(1)
    after = loss(batch)
    assert before["lam"].tolist() == [0.5, 2.0]
    assert after["lam"].tolist() == [1.0, 4.0]
    torch.testing.assert_close(after["q_reward"], before["q_reward"] + 1.0)
    assert list(batch.keys()) == ["observation"]


def test_saturated_actions_keep_their_score():
    """20 deviations from the centre tanh is 1 in float32: the score is that of the draw, not its inverse."""

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
    critic = random_critic(1, dtype=torch.float32)
    loss = SACLagLoss(policy, critic, critic, fixed([0.0]))
    batch = states(4000, dtype=torch.float32)
    out = loss(batch)
    # Entropy of a = tanh u: H(u) + E log(1 - tanh^2 u), the latter about 2 log 2 - 2 u so far out.
    per_action = 0.5 * math.log(2 * math.pi * math.e * 0.01) + 2 * math.log(2) - 40.0
    # Standard error of a mean of 4000 draws of 2 * 2 * u: 4 * 0.1 / sqrt(2 * 4000) and the density's: < 0.01.
    assert out["entropy"].item() == pytest.approx(2 * per_action, abs=0.05)
    soft = TDLoss(critic, policy, entropy_coef=1.0, gamma=1.0)
    attached(soft)
    batch["action"] = torch.zeros(4000, 2)
    batch["next"] = TensorDict(
        observation=torch.randn(4000, 4),
        reward=torch.zeros(4000, 1),
        terminated=torch.zeros(4000, 1, dtype=torch.bool),
        batch_size=4000,
    )
    value = critic(batch["next", "observation"], torch.ones(4000, 2)).amin(0).mean()
    assert soft(batch)["target_mean"].item() == pytest.approx((value + 2 * per_action).item(), abs=0.1)


@pytest.mark.parametrize(("target", "entropy"), [("auto", -2.0), (0.5, 0.5)])
def test_temperature_rises_below_the_target_entropy_and_falls_above(target, entropy):
    torch.manual_seed(0)
    policy = squashed()
    loss = SACLagLoss(policy, random_critic(1), random_critic(), fixed(LAM), target_entropy=target)
    out = loss(states())
    slope = torch.autograd.grad(out["loss_alpha"], loss.log_alpha)[0]
    # d loss / d log alpha = H(policy) - H(target), so descent raises alpha where entropy is missing.
    assert slope.item() == pytest.approx(out["entropy"].item() - entropy, rel=1e-5)


def test_a_temperature_without_target_is_constant():
    torch.manual_seed(0)
    loss = SACLagLoss(
        squashed(), random_critic(1), random_critic(), fixed(LAM), target_entropy=None, init_alpha=0.25
    )
    out = loss(states())
    assert out["loss_alpha"].item() == 0.0
    assert not out["loss_alpha"].requires_grad
    assert out["alpha"].item() == pytest.approx(0.25)
    assert not any("alpha" in name for name, _ in loss.named_parameters())
    assert "log_alpha" in loss.state_dict()


def test_target_actor_follows_the_actor():
    torch.manual_seed(0)
    policy = deterministic()
    loss = DeterministicLagLoss(policy, random_critic(1), random_critic(), fixed(LAM))
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
    loss = lag(deterministic(), random_critic(1), random_critic(), multiplier)
    assert loss(states())["lam"].tolist() == pytest.approx(multiplier.lam.tolist())
    assert (multiplier.lam > 0).all()


def test_called_with_keywords_and_several_leading_dimensions():
    torch.manual_seed(0)
    loss = lag(deterministic(), random_critic(1), random_critic(), fixed(LAM))
    batch = states(6)
    expected = loss(batch)["loss_actor"]
    values = dict(zip(loss.out_keys, loss(observation=batch["observation"]), strict=True))
    torch.testing.assert_close(values["loss_actor"], expected)
    torch.testing.assert_close(loss(batch.reshape(2, 3))["loss_actor"], expected)


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (SACLagLoss, {"policy": "deterministic"}, "get_dist.*DeterministicLagLoss"),
        (DeterministicLagLoss, {"policy": "sac"}, "SACLagLoss"),
        (SACLagLoss, {"init_alpha": 0.0}, "init_alpha=0.0"),
        (SACLagLoss, {"target_entropy": "none"}, "target_entropy='none'"),
        (SACLagLoss, {"reward_aggregate": "median"}, "median"),
        (SACLagLoss, {"cost_aggregate": "median"}, "median"),
        (SACLagLoss, {"std_coef": -1.0}, "std_coef=-1.0"),
        (DeterministicLagLoss, {"augmentation": -1.0}, "augmentation=-1.0"),
        (DeterministicLagLoss, {"augmentation": 1.0}, "q_cost_limit"),
        (SACLagLoss, {"augmentation": 1.0, "q_cost_limit": [math.nan]}, "q_cost_limit"),
    ],
)
def test_bad_settings_are_named(make, kwargs, message):
    kind = kwargs.pop("policy", "sac" if make is SACLagLoss else "deterministic")
    policy = squashed() if kind == "sac" else deterministic()
    with pytest.raises(ValueError, match=message):
        make(policy, random_critic(1), random_critic(), fixed(LAM), **kwargs)


@pytest.mark.parametrize(
    ("reward", "cost", "lam", "kwargs", "message"),
    [
        (2, 2, LAM, {}, "one output, it has 2"),
        (1, 2, [1.0], {}, "2 outputs, the multiplier 1"),
        (1, 1, LAM, {}, "1 outputs, the multiplier 2"),
        (1, 2, LAM, {"augmentation": 1.0, "q_cost_limit": [1.0]}, "1 limits for 2 costs"),
    ],
)
def test_numbers_of_costs_that_differ_are_named(reward, cost, lam, kwargs, message):
    loss = lag(deterministic(), random_critic(reward), random_critic(cost), fixed(lam), **kwargs)
    with pytest.raises(ValueError, match=message):
        loss(states())
