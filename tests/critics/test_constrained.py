"""The fused critic of reward and costs; that it equals a pair of ensembles is a law in tests/laws."""

import pytest
import torch

from safe_components.critics import ConstrainedQEnsemble, QEnsemble


def test_initial_weights_are_those_of_one_ensemble():
    """A seed therefore gives the same critic in every version that draws the members together."""
    torch.manual_seed(0)
    whole = QEnsemble(3, 2, 5, num_outputs=4, hidden_sizes=(8,))
    torch.manual_seed(0)
    fused = ConstrainedQEnsemble(3, 2, 2, 3, 4, hidden_sizes=(8,))
    for name, value in whole.named_parameters():
        assert torch.equal(fused.ensemble.get_parameter(name), value)


def test_unused_outputs_of_the_reward_get_no_gradient():
    critic = ConstrainedQEnsemble(3, 2, 2, 1, 4, hidden_sizes=(8,))
    q_reward, q_cost = critic(torch.randn(5, 3), torch.randn(5, 2))
    (q_reward.sum() + q_cost.sum()).backward()
    gradient = critic.ensemble.bias_1.grad.squeeze(1) != 0
    assert gradient.tolist() == [[True, False, False, False]] * 2 + [[True] * 4]


def test_without_costs_no_member_is_spent_on_them():
    critic = ConstrainedQEnsemble(3, 2, 2, 3, 0)
    assert critic.ensemble.num_members == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1), "num_reward_members=0"),
        ((1, 0, 1), "num_cost_members=0"),
        ((1, 1, -1), "num_costs=-1"),
    ],
)
def test_bad_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        ConstrainedQEnsemble(3, 2, *sizes)
