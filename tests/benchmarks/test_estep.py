"""The benchmark of the dual solvers: its residual, and a small run."""

import estep
import pytest
import torch

from safe_components.estep import NewtonDualSolver


@pytest.fixture(autouse=True)
def _threads():
    """The benchmark sets PyTorch's threads; give the other tests theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_residual_is_small_at_the_solution_alone():
    problem = estep.problem(30, 16, costs=2, seed=0, device="cpu")
    found = NewtonDualSolver()(*problem[:2], estep.EPSILON, problem[2])
    assert (found.lam > 0.1).all()  # both limits bind
    assert estep.residual_at(*problem, float(found.eta), found.lam) < 1e-8
    assert estep.residual_at(*problem, float(found.eta), 1.1 * found.lam) > 1e-2


def test_the_published_solver_finds_about_the_same_multipliers():
    problem = estep.problem(30, 16, costs=1, seed=0, device="cpu")
    point, evaluations = estep.published(*problem)
    found = NewtonDualSolver()(*problem[:2], estep.EPSILON, problem[2])
    assert point == pytest.approx([float(found.eta), float(found.lam)], rel=0.3)
    assert evaluations > 3


def test_every_solver_is_timed(capsys):
    estep.main("--states 8 --particles 4 --repeats 1".split())
    table = capsys.readouterr().out.splitlines()[1:]
    assert [line[:34].strip() for line in table] == [
        "solver",
        "published SLSQP (10 iterations)",
        "SLSQP, exact gradient",
        "Adam, 1 step, warm",
        "Adam, 500 steps",
        "Newton",
        "Newton, warm",
        "Newton, 12 fixed evaluations",
    ]
