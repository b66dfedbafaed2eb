"""The most reward that the circle tasks give at a cost, found by optimizing whole courses on a model.

    python benchmarks/circle_bound.py --task PointCircle                # 2 minutes on one core
    python benchmarks/circle_bound.py --task SafetyPointCircle1-v0      # 4 minutes

Both robots are a mass m that slides with linear damping c and is pushed by F u, so that v' = (F u - c v) / m.
PointCircle is this model, with u in [-1, 1]^2. The Safety-Gymnasium robot is pushed along its heading. Its
numbers are read from the simulator, and its run along a straight line is compared with the model's. The
model may choose the direction |u| = 1 freely in every frame, while the robot has to turn. So the model drives
better than the robot can. From several first courses for each start, Adam maximizes

    sum_t r_t - penalty * sum_t sigmoid((|x_t| - wall) / width),      width -> wall / 100

r_t is the task's reward, the speed around the origin over 1 + | |p_t| - radius |. For each start, the course
with the most reward less penalty times cost is kept, where the cost is counted as in the task. The last line
is the mean reward at a mean cost of 25, between the nearest courses found: some episodes follow one course,
some the other, as the limit on the mean allows. These are local maxima, which can be reached. The bound that
holds for every course is the top speed F / c in every frame.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Literal

import torch

from safe_components.envs import PointCircle, make_env
from safe_components.envs.gymnasium_batch import GymnasiumBatch

LIMIT = 25.0


@dataclass(frozen=True)
class Task:
    """A circle task in the model's terms."""

    frames: int
    radius: float  # radius of the rewarded circle [m]
    wall: float  # a frame with |x| beyond it costs 1 [m]
    start: float  # first positions are uniform in |x|, |y| <= start [m]
    factor: float  # reward per m/s and frame
    penalties: tuple[float, ...]
    pushes: Literal["square", "circle"]  # u in [-1, 1]^2, or |u| = 1
    top: float  # speed F / c [m/s]
    rate: float  # c / m [1/s]
    second: float  # duration of a frame [s]


def point_circle() -> Task:
    acceleration, drag, dt = 2.0, 1.0, 0.05
    env = PointCircle(acceleration=acceleration, drag=drag, dt=dt)
    penalties = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5)
    top = acceleration / drag
    return Task(200, env.radius, env.x_lim, env.x_lim / 2, 1.0, penalties, "square", top, drag, dt)


def safety_point_circle() -> Task:
    """Read the robot's numbers from the simulator; print how well they describe a run along a line."""
    env = make_env("SafetyPointCircle1-v0", num_envs=1, frame_skip=1, seed=0)
    assert isinstance(env, GymnasiumBatch)
    world = env.envs[0].unwrapped.task
    env.reset()
    model = world.model
    mass, damping = float(model.body_mass.sum()), float(model.dof_damping[0])
    top = float(model.actuator_gear[0, 0] * model.actuator_forcerange[0, 1]) / damping
    rate, second = damping / mass, float(model.opt.timestep) * 10
    for frame in range(1, 201):
        action = env.action_spec.zero()
        action[..., 0] = 1.0
        env.step(env.rand_action().set("action", action))
        if frame in (10, 50, 200):
            modelled = top * (1 - math.exp(-rate * second * frame))
            measured = float((world.agent.vel[:2] ** 2).sum() ** 0.5)
            print(f"after {frame:3d} frames along a line: {measured:.4f} m/s, model {modelled:.4f} m/s")
    penalties = (0.0, 0.03, 0.06, 0.1, 0.2, 0.5)
    return Task(500, 1.5, 1.125, 0.8, 0.1, penalties, "circle", top, rate, second)


def motion(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices ``[frames, frames]`` that map the pushes to positions, less the start, and to velocities.

    velocity(t) = sum_s decay^(t - s) (1 - decay) top u(s). Within a frame the velocity approaches top u
    exponentially, which is integrated exactly.
    """
    decay = math.exp(-task.rate * task.second)
    since = torch.arange(task.frames)[:, None] - torch.arange(task.frames)[None]
    velocity = torch.where(since >= 0, (1 - decay) * task.top * decay ** since.clamp(min=0), 0.0)
    before = torch.cat([torch.zeros(1, task.frames), velocity[:-1]])
    share = (1 - decay) / task.rate
    step = share * before + (task.second - share) * task.top * torch.eye(task.frames)
    return step.cumsum(0), velocity


def best_courses(
    task: Task,
    model: tuple[torch.Tensor, torch.Tensor],
    penalty: float,
    starts: torch.Tensor,
    courses: int,
    iterations: int,
) -> tuple[float, float]:
    """Mean reward and cost over the starts ``[S, 2]``, for the best of ``courses`` courses of each."""
    position_of, velocity_of = model
    first = starts.repeat_interleave(courses, 0)
    around = torch.atan2(first[:, 1], first[:, 0]) + math.pi / 2 + 0.2 * torch.randn(len(first))
    pace = (torch.rand(len(first), 1) * 0.8 + 0.4) * task.top / task.radius  # rad/s of the first course
    angle = around[:, None] + pace * torch.linspace(0, task.frames * task.second, task.frames)
    raw = torch.stack([angle.cos(), angle.sin()], -1).requires_grad_()
    optim = torch.optim.Adam([raw], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, iterations)
    for iteration in range(iterations):
        push = raw.tanh() if task.pushes == "square" else torch.nn.functional.normalize(raw, dim=-1)
        position, velocity = first[:, None] + position_of @ push, velocity_of @ push
        radius = position.norm(dim=-1)
        spin = position[..., 0] * velocity[..., 1] - position[..., 1] * velocity[..., 0]
        reward = (task.factor * spin / radius / (1 + (radius - task.radius).abs())).sum(-1)
        outside = position[..., 0].abs() - task.wall
        width = task.wall * 10 ** (-1 - iteration / iterations)
        objective = reward - penalty * torch.sigmoid(outside / width).sum(-1)
        optim.zero_grad()
        (-objective.sum()).backward()
        optim.step()
        schedule.step()
    cost = (outside > 0).sum(-1).float()
    earned = reward.detach().reshape(-1, courses)
    paid = cost.reshape(-1, courses)
    best = (earned - penalty * paid).argmax(-1, keepdim=True)
    return float(earned.gather(-1, best).mean()), float(paid.gather(-1, best).mean())


def mixed(found: list[tuple[float, float]]) -> float:
    """Largest mean reward of any two of the courses, followed in shares that cost ``LIMIT`` on average."""
    within = [(reward, cost) for reward, cost in found if cost <= LIMIT]
    over = [(reward, cost) for reward, cost in found if cost > LIMIT]
    pairs = [(low, high, (LIMIT - low[1]) / (high[1] - low[1])) for low in within for high in over]
    return max([(1 - share) * low[0] + share * high[0] for low, high, share in pairs], default=math.nan)


def main() -> None:
    tasks = {"PointCircle": point_circle, "SafetyPointCircle1-v0": safety_point_circle}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=tasks, required=True)
    parser.add_argument("--starts", type=int, default=25, help="first positions, drawn as the task does")
    parser.add_argument("--courses", type=int, default=6, help="first courses tried for each")
    parser.add_argument("--iterations", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = tasks[arguments.task]()
    print(f"bound for any course: {task.frames * task.factor * task.top:.1f}")
    starts = (torch.rand(arguments.starts, 2) * 2 - 1) * task.start
    model, found = motion(task), []
    for penalty in task.penalties:
        reward, cost = best_courses(task, model, penalty, starts, arguments.courses, arguments.iterations)
        found.append((reward, cost))
        print(f"penalty {penalty:4.2f}: reward {reward:.1f}, cost {cost:.1f}", flush=True)
    print(f"at a cost of {LIMIT:g}, between the courses above: {mixed(found):.1f}")


if __name__ == "__main__":
    main()
