"""Sauté and sampled limits: budgets and rewards by hand, under reset, frame skip, batches and discount."""

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv, check_env_specs

from safe_components.envs import SampledLimit, Saute, make_env
from safe_components.ops import q_cost_limit

LENGTH = 12
INPUTS = {
    "saute": lambda: Saute(3.0),
    "saute, discounted": lambda: Saute(3.0, gamma=0.9, episode_length=LENGTH),
    "limits": lambda: SampledLimit(2.0, 10.0),
    "one limit": lambda: SampledLimit(2.0, 10.0, limit=4.0),
}


def narrow(num_envs=3, device="cpu", **options):
    """PointCircle between walls so close that costs are frequent."""
    settings = {"x_lim": 0.02, "max_episode_steps": LENGTH, "seed": 0, "device": device}
    return make_env("PointCircle", num_envs=num_envs, **{**settings, **options})


def with_input(env, transform):
    sums = RewardSum(in_keys=["reward", "cost"], out_keys=["episode_reward", "episode_cost"])
    return TransformedEnv(env, Compose(sums, StepCounter(), transform.to(env.device)))


def rollout(env, steps=2 * LENGTH):
    """Steps over the end of an episode, the same for the same environment."""
    torch.manual_seed(1)
    env.set_seed(0)
    generator = torch.Generator().manual_seed(2)

    def policy(td):
        draw = 2 * torch.rand(*env.batch_size, 2, generator=generator) - 1
        return td.set("action", (0.3 * draw + torch.tensor([0.7, 0.0])).to(env.device))

    return env.rollout(steps, policy, break_when_any_done=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_steps_write_what_the_specs_say(make, num_envs, device):
    env = with_input(narrow(num_envs, device), make())
    check_env_specs(env, seed=0)
    steps = rollout(env)
    plain = rollout(narrow(num_envs, device))
    for root in ((), ("next",)):  # what the environment shows is unchanged, and one number is appended
        observation = steps[(*root, "observation")]
        assert torch.equal(observation[..., :-1], plain[(*root, "observation")])
        assert observation.dtype == plain["observation"].dtype
    for entry in ("cost", "done"):
        assert torch.equal(steps["next", entry], plain["next", entry])
    assert torch.equal(steps["next", "episode_reward"][..., 0, 0], plain["next", "reward"][..., 0, 0])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("frame_skip", [1, 3])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_budget_is_what_the_costs_leave(num_envs, frame_skip, gamma):
    """γ^t z_t = 1 - Σ_k<t γ^k c_k / d_γ in each episode, and the reward ends with the budget."""
    decisions = LENGTH // frame_skip
    saute = Saute(3.0, gamma=gamma, episode_length=decisions, unsafe_reward=-7.0)
    steps = rollout(with_input(narrow(num_envs, frame_skip=frame_skip), saute), 2 * decisions)
    plain = rollout(narrow(num_envs, frame_skip=frame_skip), 2 * decisions)
    budget = float(q_cost_limit(3.0, gamma, decisions))
    used_up = 0
    for copy, bare in zip(*(data.reshape(num_envs, -1) for data in (steps, plain)), strict=True):
        for first in (0, decisions):
            left = 1.0
            for t in range(first, first + decisions):
                assert copy["budget_left"][t].item() == pytest.approx(left, abs=1e-4)
                left = (left - bare["next", "cost"][t].item() / budget) / gamma
                assert copy["next", "budget_left"][t].item() == pytest.approx(left, abs=1e-4)
                assert copy["next", "observation"][t, -1].item() == pytest.approx(left, abs=1e-4)
                expected = bare["next", "reward"][t].item() if left > 1e-4 else -7.0
                assert copy["next", "reward"][t].item() == pytest.approx(expected)
                used_up += left <= 1e-4
    assert used_up > 3
    # The sums of an episode are those of the environment's own reward.
    own = plain["next", "reward"].reshape(num_envs, 2, -1).sum(-1)
    torch.testing.assert_close(
        steps["next", "episode_reward"].reshape(num_envs, 2, -1)[..., -1], own, rtol=1e-5, atol=1e-5
    )


def test_any_of_several_budgets_ends_the_reward():
    env = with_input(narrow(cost_keys=("walls", "speed")), Saute([3.0, 1000.0]))
    steps = rollout(env)["next"]
    assert steps["observation"].shape[-1] == 6
    assert (steps["budget_left"][..., 1] > 0.9).all()
    without = (steps["budget_left"][..., 0] <= 1e-4).unsqueeze(-1)
    assert without.any()
    assert ((steps["reward"] == 0) == without).all()


def test_without_an_unsafe_reward_the_reward_is_the_environments():
    steps = rollout(with_input(narrow(), Saute(3.0, unsafe_reward=None)))
    assert (steps["next", "budget_left"] < 0).any()
    assert torch.equal(steps["next", "reward"], rollout(narrow())["next", "reward"])


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_a_partial_reset_and_a_partial_step_touch_only_their_copies(make):
    env = with_input(narrow(), make())
    entry = env.transform[-1].entry
    state = rollout(env, LENGTH // 2)[:, -1]["next"].exclude("reward", "cost")
    before = state.clone()
    chosen = torch.tensor([[False], [True], [False]])
    state = env.reset(state.set("_reset", chosen))
    assert torch.equal(state[entry][~chosen], before[entry][~chosen])
    assert torch.equal(state["observation"][~chosen[:, 0]], before["observation"][~chosen[:, 0]])
    if entry == "budget_left":
        assert state[entry][chosen].item() == 1 != before[entry][chosen].item()
    # The others end first, and wait in their last state for the copy that was reset.
    wait = {"auto_reset": False, "break_when_any_done": False, "break_when_all_done": True}
    data = env.rollout(2 * LENGTH, tensordict=state, **wait)["next"]
    last = data[:, LENGTH // 2 - 1][~chosen[:, 0]]
    for key in (entry, "observation"):
        waiting = data[key][:, LENGTH // 2 :][~chosen[:, 0]]
        assert torch.equal(waiting, last[key].unsqueeze(1).expand_as(waiting))


def test_each_episode_draws_its_own_limit():
    env = with_input(narrow(num_envs=50), SampledLimit([2.0], [10.0]))
    steps = rollout(env)
    limits = steps["cost_limit"].reshape(50, 2, LENGTH)
    assert (limits == limits[..., :1]).all()
    drawn = limits[..., 0]
    assert len(drawn.unique()) == 100
    assert 2 <= drawn.min() < 3 < 9 < drawn.max() <= 10
    torch.testing.assert_close(steps["observation"][..., -1:], (steps["cost_limit"] - 2) / 8)
    assert torch.equal(rollout(env)["cost_limit"], steps["cost_limit"])  # from the global generator


def test_a_given_limit_may_lie_outside_the_range():
    steps = rollout(with_input(narrow(), SampledLimit(2.0, 10.0, limit=18.0)), 3)
    assert (steps["cost_limit"] == 18).all()
    assert (steps["observation"][..., -1] == 2).all()


def test_the_transforms_keep_nothing_of_an_episode():
    """A course goes on from its steps alone, as a resumed run does."""
    env = with_input(narrow(), Saute(3.0))
    state = rollout(env, 4)[:, -1]["next"].exclude("reward", "cost")
    saved = env.base_env.get_state()
    other = with_input(narrow(), Saute(3.0))
    other.reset()
    other.base_env.set_state(saved)
    action = TensorDict(action=torch.ones(3, 2), batch_size=3)
    ours, theirs = (each.step(state.clone().update(action))["next"] for each in (env, other))
    assert torch.equal(ours["budget_left"], theirs["budget_left"])
    assert torch.equal(ours["observation"], theirs["observation"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Saute(0.0), "must be positive"),
        (lambda: Saute(float("nan")), "nan"),
        (lambda: Saute(1.0, gamma=0.0), r"gamma=0.0 must lie in \(0, 1\]"),
        (lambda: Saute(1.0, gamma=0.9), "needs episode_length"),
        (lambda: Saute(1.0, unsafe_reward=float("inf")), "unsafe_reward=inf must be finite"),
        (lambda: SampledLimit(5.0, 5.0), "must be below high"),
        (lambda: SampledLimit([1.0, 2.0], 5.0), "one limit per cost each"),
        (lambda: SampledLimit(-1.0, 5.0), "low"),
        (
            lambda: with_input(narrow(), Saute([1.0, 2.0])).reset(),
            "holds 2 limits, but the environment has 1",
        ),
    ],
)
def test_bad_arguments_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
