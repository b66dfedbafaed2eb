"""Small parts of the recipes' plumbing against TorchRL's, which they make faster."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage
from torchrl.objectives import SoftUpdate

from plumbing import Polyak
from plumbing.storage import GatherStorage
from safe_components.mstep import MStepLoss, NoTrustRegion
from safe_components.policies import gaussian_policy

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("filled", [5, 8])
def test_gathered_entries_are_those_of_torchrls_storage(filled, device):
    steps = TensorDict(
        observation=torch.arange(2.0 * filled).view(filled, 2),
        next=TensorDict(terminated=torch.arange(filled).view(filled, 1) % 3 == 0, batch_size=[filled]),
        batch_size=[filled],
        device=device,
    )
    ours, theirs = (kind(8, device=device) for kind in (GatherStorage, LazyTensorStorage))
    for storage in (ours, theirs):
        storage.set(range(filled), steps)
    for index in (
        torch.tensor([3, 0, 3, 4]),
        torch.tensor([2]),
        torch.tensor([True] * filled),
        1,
        slice(1, 4),
    ):
        found, expected = ours.get(index), theirs.get(index)
        assert found.batch_size == expected.batch_size
        assert (found == expected).all()
    taken = ours.get(torch.tensor([0, 1]))
    taken["observation"].zero_()  # a copy, not a view of the storage
    assert (ours.get(slice(0, 2))["observation"] == steps["observation"][:2]).all()


def test_nothing_comes_out_of_an_empty_storage():
    with pytest.raises(RuntimeError, match="non-initialized"):
        GatherStorage(4).get(torch.tensor([0]))


@pytest.mark.parametrize("device", DEVICES)
def test_polyak_average_is_torchrls(device):
    torch.manual_seed(0)
    policy = gaussian_policy(3, [-1.0], [1.0], hidden_sizes=(4,)).to(device)
    losses = [MStepLoss(policy, NoTrustRegion()) for _ in range(2)]
    updaters = Polyak(losses[0], eps=0.9), SoftUpdate(losses[1], eps=0.9)
    for _ in range(3):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(torch.randn_like(parameter))
        for updater in updaters:
            updater.step()
    ours, theirs = (dict(loss.target_policy_params.items(True, True)) for loss in losses)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)
    weight = ("module", "0", "module", "net", "0", "weight")
    assert (ours[weight] != policy.get_parameter("module.0.module.net.0.weight")).all()
