"""The most reward SafetyPointCircle1-v0 can give, by trajectory optimisation on a model of its robot.

    python benchmarks/point_circle_bound.py                   # 3 minutes on one core

The robot is a mass that slides with linear damping c and is pushed by at most F along its heading, so that
v' = (F u - c v) / m; the numbers are read from the simulator, and the model's run along a straight line is
compared with the simulator's. The model may choose the direction u of the push freely in every frame, for
which the robot has to turn: a better than perfect driver. Maximised by Adam over the directions of 500
frames, from several first courses for each start, of which the best is kept:

    sum_t r_t - penalty * sum_t sigmoid((|x_t| - 1.125) / 0.01)

r_t is the task's reward, 0.1 times the speed around the origin over 1 + | |p_t| - 1.5 |. The printed cost
counts the frames with |x| > 1.125. Local maxima bound nothing by themselves; the bound that holds whatever
the course is 0.1 times the top speed F / c in every frame.
"""

from __future__ import annotations

import argparse
import math

import torch

from safe_components.envs import make_env
from safe_components.envs.gymnasium_batch import GymnasiumBatch

FRAMES, RADIUS, WALL, FACTOR, START = 500, 1.5, 1.125, 0.1, 0.8


def robot() -> tuple[float, float, float, float]:
    """Mass, largest push, damping and seconds a frame; the simulator must agree with them along a line."""
    env = make_env("SafetyPointCircle1-v0", num_envs=1, frame_skip=1, seed=0)
    assert isinstance(env, GymnasiumBatch)
    task = env._envs[0].unwrapped.task
    env.reset()
    model = task.model
    mass, damping = float(model.body_mass.sum()), float(model.dof_damping[0])
    push = float(model.actuator_gear[0, 0] * model.actuator_forcerange[0, 1])
    second = float(model.opt.timestep) * 10
    for frame in range(1, 201):
        action = env.action_spec.zero()
        action[..., 0] = 1.0
        env.step(env.rand_action().set("action", action))
        if frame in (10, 50, 200):
            modelled = push / damping * (1 - math.exp(-damping / mass * second * frame))
            measured = float((task.agent.vel[:2] ** 2).sum() ** 0.5)
            print(f"after {frame:3d} frames along a line: {measured:.4f} m/s, model {modelled:.4f} m/s")
    return mass, push, damping, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=25, help="first positions, drawn as the task does")
    parser.add_argument("--courses", type=int, default=4, help="first courses tried for each")
    parser.add_argument("--iterations", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mass, push, damping, second = robot()
    print(f"bound for any course: {FRAMES * FACTOR * push / damping:.1f}")

    # Positions are linear in the pushes: velocity(t) = sum_s decay^(t - s) (1 - decay) top u(s).
    top, decay = push / damping, math.exp(-damping / mass * second)
    since = torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)[None]
    velocity_of = torch.where(since >= 0, (1 - decay) * top * decay ** since.clamp(min=0), 0.0)
    # Within a frame the velocity goes exponentially to top u, which is integrated exactly.
    before = torch.cat([torch.zeros(1, FRAMES), velocity_of[:-1]])
    share = (mass / damping) * (1 - decay)
    step_of = share * before + (second - share) * top * torch.eye(FRAMES)
    position_of = step_of.cumsum(0)

    start = (torch.rand(arguments.starts, 2) * 2 - 1) * START
    start = start.repeat_interleave(arguments.courses, 0)
    around = torch.atan2(start[:, 1], start[:, 0]) + math.pi / 2
    for penalty in (0.0, 0.03, 0.06, 0.1, 0.2, 0.5):
        rate = torch.rand(len(start), 1) * 0.8 + 0.6  # rad/s of the first course
        angle = around[:, None] + rate * torch.linspace(0, FRAMES * second, FRAMES)
        angle = (angle + 0.2 * torch.randn(len(start), 1)).requires_grad_()
        optim = torch.optim.Adam([angle], lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, arguments.iterations)
        for _ in range(arguments.iterations):
            u = torch.stack([angle.cos(), angle.sin()], -1)
            position, velocity = start[:, None] + position_of @ u, velocity_of @ u
            radius = position.norm(dim=-1)
            speed = (position[..., 0] * velocity[..., 1] - position[..., 1] * velocity[..., 0]) / radius
            reward = (FACTOR * speed / (1 + (radius - RADIUS).abs())).sum(-1)
            outside = position[..., 0].abs() - WALL
            objective = reward - penalty * torch.sigmoid(outside / 0.01).sum(-1)
            optim.zero_grad()
            (-objective.sum()).backward()
            optim.step()
            schedule.step()
        by_start = [
            v.detach().reshape(arguments.starts, -1) for v in (objective, reward, (outside > 0).sum(-1))
        ]
        best = by_start[0].argmax(-1, keepdim=True)
        kept = [value.gather(-1, best) for value in by_start[1:]]
        print(
            f"penalty {penalty:4.2f}: reward {kept[0].mean():.1f} (best start {kept[0].max():.1f}), "
            f"cost {kept[1].float().mean():.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
