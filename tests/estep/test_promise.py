"""What the E-step promises, and what the policy delivers."""

import math

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn

from safe_components.estep import EStepProjector, ParticleSampler, Promise

STATES = torch.zeros(400, 2)


class Gaussian(nn.Module):
    """The same Gaussian in each state."""

    def __init__(self, loc, std):
        super().__init__()
        self.loc, self.std = nn.Parameter(torch.tensor(loc)), torch.tensor(std)

    def forward(self, observation):
        lead = observation.shape[:-1]
        return self.loc.expand(*lead, 2), torch.diag_embed(self.std).expand(*lead, 2, 2)


class Linear(nn.Module):
    """The reward is the first action times a slope, the cost is the second one."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, observation, action):
        return (self.slope * action[..., :1]).unsqueeze(0), 7.0 * action[..., 1:].unsqueeze(0)


def policy(loc=(0.0, 0.0), std=(0.5, 2.0)):
    return TensorDictModule(Gaussian(list(loc), list(std)), ["observation"], ["loc", "scale_tril"])


def promise(limit=math.inf, critic=None, reference=None, **options):
    torch.manual_seed(0)
    sampler = ParticleSampler(reference or policy(), critic or Linear(), 64, **options)
    return Promise(sampler, EStepProjector(0.02, [min(limit, 1e3)]))


def test_without_a_binding_limit_a_gaussian_promises_the_root_of_twice_the_radius():
    made = promise().make(STATES)
    assert made["promised_reward"].item() == pytest.approx(math.sqrt(0.04), abs=0.01)
    assert made["promised_cost"].item() == pytest.approx(0.0, abs=0.02)
    assert made["spread_reward"].item() == pytest.approx(3.0 * 0.5, rel=0.02)
    assert made["spread_cost"].item() == pytest.approx(7.0 * 2.0, rel=0.02)


def test_an_entropy_moves_the_weights_and_is_no_gain_of_q():
    soft = promise(entropy_coef=1.0)
    made = soft.make(STATES)
    # The ball is left by way of wide actions, too, so less of Q can be had of it.
    assert 0.05 < made["promised_reward"].item() < math.sqrt(0.04) - 0.02
    assert made["spread_reward"].item() == pytest.approx(3.0 * 0.5, rel=0.02)
    assert soft.keep(policy())["delivered_reward"].item() == pytest.approx(0.0, abs=1e-5)


def test_a_limit_on_the_cost_is_promised():
    made = promise(limit=-1.4).make(STATES)  # a tenth of a spread below the reference policy
    assert made["promised_cost"].item() == pytest.approx(-0.1, abs=0.02)
    assert made["promised_reward"].item() == pytest.approx(math.sqrt(0.04 - 0.01), abs=0.02)


@pytest.mark.parametrize(("loc", "std"), [((0.1, -0.3), (0.5, 2.0)), ((0.0, 0.4), (0.1, 1.0))])
def test_what_is_delivered_is_the_shift_of_the_mean_in_spreads(loc, std):
    made = promise()
    made.make(STATES)
    kept = made.keep(policy(loc, std))
    # Noise of a mean of 25,600 draws, times what remains of it after the change of the spread.
    assert kept["delivered_reward"].item() == pytest.approx(loc[0] / 0.5, abs=0.02)
    assert kept["delivered_cost"].item() == pytest.approx(loc[1] / 2.0, abs=0.02)


@pytest.mark.parametrize("loc", [(0.0, 0.0), (0.7, -1.2)])
def test_the_same_policy_delivers_nothing(loc):
    made = promise(reference=policy(loc))
    made.make(STATES)
    kept = made.keep(policy(loc))
    assert kept["delivered_reward"].abs().item() < 1e-5
    assert kept["delivered_cost"].abs().max().item() < 1e-5


def test_the_critic_of_the_promise_judges_the_delivery():
    critic = Linear()
    made = promise(critic=critic)
    made.make(STATES)
    before = made.keep(policy((0.1, 0.0)))["delivered_reward"]
    with torch.no_grad():
        critic.slope.fill_(-50.0)
    assert torch.equal(made.keep(policy((0.1, 0.0)))["delivered_reward"], before)


def test_the_e_step_keeps_its_warm_start_and_its_solution():
    made = promise()
    made.make(STATES)
    assert made.estep.eta.isnan()
    with pytest.raises(RuntimeError, match="no solution yet"):
        _ = made.estep.solution


def test_a_cost_that_is_the_same_for_all_actions_promises_and_delivers_nothing():
    made = promise(critic=lambda o, a: (a[..., :1].unsqueeze(0), 0.0 * a[..., 1:].unsqueeze(0)))
    assert made.make(STATES)["promised_cost"].tolist() == [0.0]
    assert made.keep(policy((1.0, 1.0)))["delivered_cost"].tolist() == [0.0]


def test_nothing_is_delivered_before_a_promise():
    with pytest.raises(RuntimeError, match="nothing was promised yet"):
        promise().keep(policy())
