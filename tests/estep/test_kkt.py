"""The residual against the four lines of its definition, and its slope at the cap of a price."""

import pytest
import torch

from safe_components.estep import kkt_residual


@pytest.mark.parametrize(
    ("gradient", "point", "expected"),
    [
        ([0.0, 0.0], [1.0, 0.5], 0.0),
        ([-0.1, 0.0], [1.0, 0.5], 0.5),  # KL - ε, in units of ε = 0.2
        ([0.0, -0.3], [1.0, 0.5], 0.3),  # a limit exceeded, far from the cap of 2
        ([0.1, 0.0], [1.0, 0.5], 0.09),  # (η - η_min) (ε - KL) with η_min = 0.1
        ([0.0, 0.3], [1.0, 0.5], 0.15),  # λ (d - E_q Q_c)
        ([0.0, -0.3], [1.0, 1.0], 0.3),  # at a distance of 1 from the cap, the violation still counts in full
        ([0.0, -0.3], [1.0, 1.75], 0.075),  # nearer, it counts by the distance
        ([0.0, -0.3], [1.0, 2.0], 0.0),  # at the cap, it does not count
        ([0.1, -0.3], [0.1, 2.0], 0.0),  # both at a bound that the gradient pushes against
        ([0.1, 0.3], [1.0, 0.5], 0.15),  # the largest, not the sum
    ],
)
def test_the_residual_by_hand(gradient, point, expected):
    lower, upper = torch.tensor([0.1, 0.0]).double(), torch.tensor([torch.inf, 2.0]).double()
    gradient, point = torch.tensor(gradient).double(), torch.tensor(point).double()
    residual = kkt_residual(gradient, point, lower, upper, torch.tensor(0.2).double())
    assert float(residual) == pytest.approx(expected, abs=1e-7)  # the numbers above are float32


def test_a_wide_ball_is_left_by_an_absolute_amount():
    gradient, point = torch.tensor([-0.1]), torch.tensor([1.0])
    residual = kkt_residual(gradient, point, torch.zeros(1), torch.full((1,), torch.inf), torch.tensor(5.0))
    assert float(residual) == pytest.approx(0.1)
