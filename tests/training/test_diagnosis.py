"""The links of a policy improvement, measured while a run goes on."""

import math

import numpy as np
import pytest
import torch
from small_runs import small, train

import cvpo
from safe_components.training import Diagnosis, plot_diagnosis, read_metrics

LINKS = ("promised", "delivered", "spread", "slope", "slope_error", "bias")


def test_a_run_writes_and_draws_its_diagnosis(tmp_path):
    rows, _ = train(cvpo, tmp_path / "run")
    for link in LINKS:
        for signal in ("reward", "cost"):
            assert np.isfinite(rows[f"{link}_{signal}"]).any(), (link, signal)
    assert (rows["promised_reward"] ** 2 <= 2 * 0.1 + 0.1).all()  # about 2 ε, with 8 particles
    assert (rows["spread_reward"] > 0).all()
    picture = tmp_path / "run" / "diagnosis.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_takes_the_same_course_without_it(tmp_path, monkeypatch):
    _, learner = train(cvpo, tmp_path / "with")
    monkeypatch.setattr(Diagnosis, "before", lambda self, steps: {})
    monkeypatch.setattr(Diagnosis, "after", lambda self: {})
    _, other = train(cvpo, tmp_path / "without")
    for name, value in learner.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name]), name


@pytest.mark.parametrize("shape", [(4, 50), (1, 2000), (100, 3), (50,), (2, 2, 50)])
def test_it_looks_at_so_many_steps_whatever_the_shape_of_a_batch(shape, training):
    """Few steps in a row have no measured advantage, but they have a promise."""
    config = small(cvpo)
    task = cvpo.Task(config)
    learner = cvpo.CVPO(config, task)
    diagnosis = Diagnosis(learner.policy, learner.particles, learner.estep, gamma=0.99)
    seen = []
    scores = learner.particles.scores
    learner.particles.scores = lambda o, a, *rest: (seen.append(len(o)), scores(o, a, *rest))[1]
    env = task._make(**(task._settings | {"num_envs": math.prod(shape[:-1])}))
    metrics = diagnosis.before(env.rollout(shape[-1], break_when_any_done=False).reshape(shape))
    assert max(seen) <= 512
    assert ("slope_reward" in metrics) == (shape[-1] >= 10)
    assert metrics["promised_cost"].shape == (1,)
    assert set(diagnosis.after()) == {"delivered_reward", "delivered_cost"}


def test_other_recipes_have_no_diagnosis_to_draw(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("frames,episode_reward\n1,2\n")
    with pytest.raises(ValueError, match="only CVPO writes a diagnosis"):
        plot_diagnosis(read_metrics(path), [25.0], tmp_path / "d.png")
