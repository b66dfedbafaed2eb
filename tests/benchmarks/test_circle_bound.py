"""The best courses of the circle tasks: the model that is optimized, and what penalties and mixing do."""

import circle_bound
import torch

from safe_components.envs import PointCircle


def test_the_model_moves_as_the_environment():
    task = circle_bound.point_circle()
    position_of, velocity_of = circle_bound.motion(task)
    steps = PointCircle(seed=0).rollout(50)
    push = steps["action"]
    start, after = steps["observation"][0, :2], steps["next", "observation"]
    torch.testing.assert_close(start + position_of[:50, :50] @ push, after[:, :2])
    torch.testing.assert_close(velocity_of[:50, :50] @ push, after[:, 2:])


def test_a_penalty_lowers_cost_and_reward():
    task = circle_bound.point_circle()
    starts = torch.tensor([[0.1, 0.2], [-0.2, 0.0]])
    torch.manual_seed(0)
    model = circle_bound.motion(task)
    free, paid = (circle_bound.best_courses(task, model, price, starts, 1, 60) for price in (0.0, 2.0))
    assert paid[0] < free[0] < task.frames * task.top
    assert paid[1] < free[1]


def test_two_courses_are_mixed_at_the_limit():
    assert circle_bound.mixed([(100.0, 0.0), (200.0, 50.0)]) == 150.0
