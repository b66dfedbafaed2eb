"""PointCircle against its closed-form motion, on every device at hand."""

import math

import numpy as np
import pytest
import torch
from devices import DEVICES

from safe_components.envs import PointCircle, make_env
from safe_components.envs._draw_point_circle import draw_point_circle

# Rounding of one step accumulates over the steps: 200 of them on numbers up to 20.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-11}
SETTINGS = {"radius": 1.2, "x_lim": 0.8, "acceleration": 1.7, "drag": 0.6, "dt": 0.04, "speed_limit": 0.9}


def constant(env, action):
    return env.rollout(env.episode_length, policy=lambda td: td.set("action", action))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_action_moves_as_in_closed_form(dtype, device):
    env = PointCircle(5, seed=1, dtype=dtype, device=device, costs=("walls", "speed"), **SETTINGS)
    action = torch.tensor([[0.3, 0.8], [-1, 0.5], [0, 0], [2.0, -9.0], [0.01, 1]], dtype=dtype, device=device)
    rollout = constant(env, action)
    assert rollout.shape == (5, 200)

    drag, dt = SETTINGS["drag"], SETTINGS["dt"]
    u = np.clip(action.cpu().double().numpy(), -1, 1)[:, None] * SETTINGS["acceleration"] / drag
    p0 = rollout["observation"][:, :1, :2].cpu().double().numpy()
    t = np.arange(1, 201)[None, :, None]
    decay = np.exp(-drag * dt * t)
    p, v = p0 + u * t * dt - u * (1 - decay) / drag, u - u * decay
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        rollout["next", "observation"].cpu(), np.concatenate([p, v], -1), atol=tolerance
    )

    (x, y), (vx, vy) = np.moveaxis(p, -1, 0), np.moveaxis(v, -1, 0)
    distance = np.hypot(x, y)
    reward = (x * vy - y * vx) / distance / (1 + abs(distance - SETTINGS["radius"]))
    returns = rollout["next", "reward"].sum(1).squeeze(-1).cpu()
    np.testing.assert_allclose(returns, reward.sum(1), rtol=1e-4, atol=1e-3)
    assert returns[2] == 0  # at rest

    costs = np.stack([abs(x) > SETTINGS["x_lim"], np.hypot(vx, vy) > SETTINGS["speed_limit"]], -1)
    # A state within rounding of a threshold may fall on either side.
    sure = np.stack([abs(abs(x) - 0.8) > 1e-2, abs(np.hypot(vx, vy) - 0.9) > 1e-2], -1)
    measured = rollout["next", "cost"].cpu().numpy()
    np.testing.assert_array_equal(measured[sure], costs[sure])
    assert costs[sure].any(axis=0).all()
    assert sure.mean() > 0.9


def test_running_the_circle_pays_its_speed_and_costs_its_share_outside():
    # On the circle the reward is the speed, and |x| > x_lim on 4 acos(x_lim / radius) of 2π radians.
    env = PointCircle(1000, dtype=torch.float64)
    angle = torch.arange(1000, dtype=torch.float64) * 2 * math.pi / 1000
    state = torch.stack([angle.cos(), angle.sin(), -1.3 * angle.sin(), 1.3 * angle.cos()], -1)
    reward, cost = env._reward_and_costs(state)
    torch.testing.assert_close(reward, torch.full((1000, 1), 1.3))
    assert cost.mean().item() == pytest.approx(4 * math.acos(0.7) / (2 * math.pi), abs=4 / 1000)
    backwards, _ = env._reward_and_costs(state * torch.tensor([1, 1, -1, -1]))
    torch.testing.assert_close(backwards, -reward)
    at_center, _ = env._reward_and_costs(torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64))
    assert at_center.item() == 0


def test_the_best_run_breaks_a_limit_that_a_safe_one_keeps():
    # A hand-made controller: run a circle of the given radius, at the speed the acceleration allows.
    def run(radius, speed):
        env = PointCircle(16, seed=0)

        def policy(td):
            x, y, vx, vy = td["observation"].unbind(-1)
            r = torch.hypot(x, y).clamp_min(1e-3)
            tangent, normal = torch.stack([-y, x], -1) / r[:, None], torch.stack([x, y], -1) / r[:, None]
            velocity = torch.stack([vx, vy], -1)
            wanted = speed * tangent + 3 * (radius - r)[:, None] * normal
            pull = velocity - (speed**2 / radius) * normal + 8 * (wanted - velocity)
            return td.set("action", pull / 2)

        rollout = env.rollout(200, policy=policy)
        return rollout["next", "reward"].sum(1).mean().item(), rollout["next", "cost"].sum(1).mean().item()

    fast, safe = run(1.0, 1.25), run(0.62, 1.0)
    assert fast[1] > 60
    assert safe[1] < 5
    assert 252 > fast[0] > safe[0] * 1.2 > 100


@pytest.mark.parametrize("device", DEVICES)
def test_episodes_start_at_rest_in_the_inner_square(device):
    start = PointCircle(500, device=device, seed=2).reset()["observation"]
    assert (start[:, 2:] == 0).all()
    assert 0.34 < start[:, :2].abs().max() <= 0.35


def test_frame_skip_sums():
    action = torch.tensor([[0.4, 1.0], [1.0, -0.2]])
    whole = constant(PointCircle(2, seed=3, costs=("walls", "speed")), action)
    env = PointCircle(2, seed=3, costs=("walls", "speed"), frame_skip=4)
    assert type(env) is PointCircle  # TorchRL appended no transform of its own
    skipped = constant(env, action)
    assert skipped.shape == (2, 50)
    for key in ("reward", "cost"):
        expected = whole["next", key].unflatten(1, (50, 4)).sum(2)
        torch.testing.assert_close(skipped["next", key], expected)
    torch.testing.assert_close(skipped["next", "observation"], whole["next", "observation"][:, 3::4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_with_resets_never_waits_for_the_device():
    env = PointCircle(64, device="cuda", seed=0, episode_length=50)
    td = env.rand_action(env.reset())
    env.step_and_maybe_reset(td)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            _, td = env.step_and_maybe_reset(td)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moving_to_another_device_keeps_the_dynamics():
    env = PointCircle(2, seed=0).to("cuda")
    stay = constant(env, torch.zeros(2, 2, device="cuda"))
    assert stay.device.type == "cuda"
    assert (stay["next", "observation"] == stay["observation"]).all()


POINT, BEYOND, FLOOR = (0x1F, 0x4E, 0x8C), (0xF6, 0xDD, 0xDD), (255, 255, 255)


def pixel(image, x, y):
    """Color at a position in meters; 1.6 m lie between the center of the picture and its border."""
    return tuple(image[int(160 * (1 - y / 1.6)), int(160 * (1 + x / 1.6))].tolist())


def test_the_picture_shows_the_point_and_what_lies_beyond_the_walls():
    image = draw_point_circle([(0.0, 0.0), (0.4, -0.8)], radius=1.0, x_lim=0.7)
    assert pixel(image, 0.4, -0.8) == POINT
    assert pixel(image, 0.75, 1.4) == pixel(image, -1.5, 1.4) == BEYOND
    assert pixel(image, 0.6, 1.4) == FLOOR
    trail = pixel(image, 0.2, -0.4)
    assert trail[2] > trail[0] + 50  # blue


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_render_follows_the_first_copy(num_envs, device):
    env = make_env("PointCircle", num_envs=num_envs, device=device, seed=0, render_mode="rgb_array")
    td = env.reset()
    first = env.render()
    assert first.shape == (320, 320, 3)
    assert first.dtype == np.uint8
    for _ in range(80):
        td = env.step_mdp(env.step(td.set("action", -2 * td["observation"][..., :2])))
        assert pixel(env.render(), *td["observation"].reshape(num_envs, 4)[0, :2].tolist()) == POINT
    others = torch.arange(num_envs, device=device).reshape(td["done"].shape) > 0
    before = env.render()
    env.reset(td.clone().set("_reset", others))
    assert (env.render() == before).all()  # the trail of the first copy goes on
    env.set_seed(0)
    env.reset()
    assert (env.render() == first).all()


def test_render_needs_a_render_mode_and_a_reset():
    for env in (PointCircle(render_mode="rgb_array"), make_env("PointCircle")):
        with pytest.raises(RuntimeError, match="render_mode='rgb_array' at construction, and a reset"):
            env.render()
    env.rollout(3)
    assert not env._trail  # without rendering, a step keeps no trail


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1"),
        ({"episode_length": 10, "frame_skip": 3}, "episode_length 10 must be a multiple of frame_skip 3"),
        ({"radius": 0.0}, "radius must be a positive number, got 0.0"),
        ({"drag": float("nan")}, "drag must be a positive number, got nan"),
        ({"costs": ("wall",)}, "costs must be some of .*walls.*speed.*, got"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        PointCircle(**arguments)


def test_copies_that_are_masked_in_a_step_stay_where_they_are():
    """As in a rollout in which some copies have ended."""
    env, all_of_them = (PointCircle(num_envs=3, seed=0) for _ in range(2))
    td, other = env.reset(), all_of_them.reset()
    action = torch.full((3, 2), 0.5)
    chosen = torch.tensor([[True], [False], [True]])
    step = env._step(td.set("action", action).set("_step", chosen))
    moved = all_of_them._step(other.set("action", action))
    for key in ("observation", "reward", "cost"):
        assert torch.equal(step[key][[0, 2]], moved[key][[0, 2]])
    assert torch.equal(step["observation"][1], td["observation"][1])
    assert step["reward"][1] == step["cost"][1] == 0
