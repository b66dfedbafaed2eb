"""Target networks that follow, against TorchRL's updaters and against plain arithmetic."""

import pytest
import torch
from devices import DEVICES
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import SoftUpdate

from safe_components.critics import ConstrainedQEnsemble, Copy, Polyak, TDLoss


def losses(number, device="cpu"):
    torch.manual_seed(0)
    options = {"hidden_sizes": (4,), "action_low": [-1, -1], "action_high": [1, 1]}
    critic = ConstrainedQEnsemble(3, 2, 2, 1, 2, **options).to(device)
    actor = TensorDictModule(nn.Linear(3, 2), ["observation"], ["action"])
    return critic, [TDLoss(critic, actor) for _ in range(number)]


def shift(critic):
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("device", DEVICES)
def test_polyak_average_is_torchrls(device):
    critic, (mine, theirs) = losses(2, device)
    updaters = Polyak(mine, eps=0.9), SoftUpdate(theirs, eps=0.9)
    for _ in range(3):
        shift(critic)
        for updater in updaters:
            updater.step()
    ours, expected = (dict(loss.target_critic_params.items(True, True)) for loss in (mine, theirs))
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(ours[key], value)
    key = ("ensemble", "weight_0")
    assert (ours[key] != mine.critic_params[key]).all()


def test_polyak_average_keeps_a_share():
    critic, (loss,) = losses(1)
    target = Polyak(loss, tau=0.25)
    before = loss.target_critic_params["ensemble", "weight_0"].clone()
    shift(critic)
    target.step()
    expected = 0.75 * before + 0.25 * critic.ensemble.weight_0.detach()
    # float32 rounds each of three operations by 6e-8 of numbers of order 1.
    torch.testing.assert_close(
        loss.target_critic_params["ensemble", "weight_0"].data, expected, rtol=0, atol=3e-7
    )


def test_a_copy_is_the_network_at_each_step():
    critic, (loss,) = losses(1)
    target = Copy(loss)
    for _ in range(3):
        shift(critic)
        assert not torch.equal(loss.target_critic_params["ensemble", "weight_0"], critic.ensemble.weight_0)
        target.step()
        for name, value in critic.ensemble.named_parameters():
            assert torch.equal(loss.target_critic_params["ensemble", name], value)
