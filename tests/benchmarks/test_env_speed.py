"""The benchmark of the environments: the steps that it counts."""

import itertools

import env_speed
import pytest
import torch


@pytest.mark.parametrize(
    ("start", "steps"),
    [
        (lambda: env_speed.point_circle(8, 10), 80),
        (lambda: env_speed.collected("PointCircle", 8, 10), 80),
        (lambda: env_speed.safety_gymnasium("SafetyPointCircle1-v0", True), 500),
    ],
    ids=["stepped", "collected", "fast path"],
)
def test_each_side_counts_its_steps(start, steps):
    before = torch.get_num_threads()
    try:
        assert next(start()) == steps
    finally:
        torch.set_num_threads(before)


def test_a_worker_answers_whole_batches_until_the_time_is_over():
    class Pipe:
        requests, answers = iter([0.0, 0.01, None]), []

        def recv(self):
            return next(self.requests)

        def send(self, answer):
            self.answers.append(answer)

    env_speed.serve(Pipe(), env_speed.Side("batches", lambda steps: itertools.repeat(steps), (80,)))
    (none, _), (some, spent) = Pipe.answers
    assert none == 0
    assert some > 0
    assert some % 80 == 0
    assert spent >= 0.01
