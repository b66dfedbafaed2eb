"""Step sizes that fall over a run."""

import math

import pytest
import torch
from torch.nn import Parameter

from safe_components.training import anneal, annealed_group


def adam(parameter, lr, end):
    return torch.optim.Adam([annealed_group([parameter], lr, end)], fused=True)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.25, 0.8), (1.0, 0.2), (1.7, 0.2)])
def test_it_falls_linearly(progress, share):
    optimizer = adam(Parameter(torch.zeros(3)), 0.1, 0.2)
    anneal(optimizer, progress)
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.1 * share)


def test_the_steps_are_those_of_a_scheduler():
    """PyTorch's LinearLR sets a plain number to the same values."""
    ours, theirs = (Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    optimizer, other = adam(ours, 0.1, 0.05), torch.optim.Adam([theirs], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(other, 1.0, 0.05, total_iters=10)
    for i in range(10):
        anneal(optimizer, i / 10)
        for parameter, taking in ((ours, optimizer), (theirs, other)):
            taking.zero_grad()
            (parameter**2 - parameter).sum().backward()
            taking.step()
        schedule.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_other_groups_keep_their_step_size():
    policy, other = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    groups = [annealed_group([policy], 0.1, 0.5), {"params": [other], "lr": 0.3}]
    optimizer = torch.optim.Adam(groups, fused=True)
    anneal(optimizer, 1.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.05, 0.3])


def test_a_restored_optimizer_goes_on():
    first, second = (adam(Parameter(torch.ones(2)), 0.1, 0.5) for _ in range(2))
    anneal(first, 0.5)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"].item() == pytest.approx(0.075)
    anneal(second, 1.0)
    assert second.param_groups[0]["lr"].item() == pytest.approx(0.05)
    assert first.param_groups[0]["lr"].item() == pytest.approx(0.075)  # nothing is shared


def test_the_step_size_of_a_recorded_update_follows():
    """A recorded step reads the memory of the step size, so it must stay the same tensor."""
    optimizer = adam(Parameter(torch.zeros(2)), 0.1, 0.5)
    step_size = optimizer.param_groups[0]["lr"]
    anneal(optimizer, 1.0)
    assert optimizer.param_groups[0]["lr"] is step_size
    assert math.isclose(step_size.item(), 0.05, rel_tol=1e-6)
