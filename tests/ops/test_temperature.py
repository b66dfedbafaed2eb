"""A temperature: a number, a tensor that is shared, or a function."""

import copy

import pytest
import torch

from safe_components.ops import Temperature


@pytest.mark.parametrize(("value", "active"), [(0.0, False), (0, False), (0.1, True)])
def test_a_number_says_whether_there_is_an_entropy(value, active):
    temperature = Temperature(value)
    assert temperature.active is active
    assert temperature() == value


def test_a_tensor_is_shared_and_its_owner_saves_it():
    value = torch.tensor(0.0)
    temperature = Temperature(value)
    assert temperature.active  # it may become another number
    value.add_(2.0)
    assert temperature() == 2.0
    assert not temperature.state_dict()
    both = torch.nn.ModuleList([Temperature(value), temperature])
    one, two = copy.deepcopy(both)
    one().mul_(3.0)
    assert two() == 6.0
    assert value == 2.0


def test_a_function_is_asked_at_every_call():
    values = iter([torch.tensor(1.0), torch.tensor(2.0)])
    temperature = Temperature(lambda: next(values))
    assert temperature.active
    assert [float(temperature()), float(temperature())] == [1.0, 2.0]
