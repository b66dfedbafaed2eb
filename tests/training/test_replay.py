"""The replay buffer: TorchRL's storage, only faster; what goes in comes out."""

import pytest
import torch
from devices import DEVICES
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage

from safe_components.training import Replay, read_state, write_state
from safe_components.training.replay import GatherStorage


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


def steps(envs=3, length=20):
    """Episodes of ten steps; an observation is its environment and its time."""
    env, time = torch.meshgrid(torch.arange(envs), torch.arange(length + 1), indexing="ij")
    observation = torch.stack([env, time], -1).float()
    ends = (time[:, 1:, None] % 10) == 0
    following = {
        "observation": observation[:, 1:],
        "reward": torch.ones(envs, length, 1),
        "cost": torch.ones(envs, length, 2),
        "terminated": torch.zeros_like(ends),
        "truncated": ends,
        "done": ends.clone(),
    }
    step = {"observation": observation[:, :-1], "action": torch.zeros(envs, length, 2), "next": following}
    return TensorDict(step, batch_size=[envs, length]).auto_batch_size_(2)


def test_a_saved_buffer_is_loaded_whole_and_continues(tmp_path):
    ours, other = (Replay(100, 8, n_step=3, gamma=0.5, window=30) for _ in range(2))
    ours.extend(steps())
    write_state(tmp_path / "replay", ours.state_dict())
    other.load_state_dict(read_state(tmp_path / "replay"))
    for buffer in (ours, other):  # the ring goes on where it was, and the windows are still open
        buffer.extend(steps())
    torch.manual_seed(0)
    expected = ours.sample()
    torch.manual_seed(0)
    found = other.sample()
    assert all((a == b).all() for a, b in zip(expected, found, strict=True))


def test_a_transition_sums_over_its_steps():
    replay = Replay(100, 64, n_step=3, gamma=0.5)
    replay.extend(steps())
    batch = replay.transitions()
    left = 10 - batch["observation"][:, 1] % 10  # steps to the end of the episode
    size = left.clamp_max(3.0)
    torch.testing.assert_close(batch["next", "reward"][:, 0], 2 * (1 - 0.5**size))
    torch.testing.assert_close(batch["next", "cost"], batch["next", "reward"].expand(-1, 2))
    torch.testing.assert_close(batch["next", "observation"][:, 1], batch["observation"][:, 1] + size)


def test_sizes_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"replay\.size is 0"):
        Replay(0, 8, n_step=1, gamma=0.9)


def test_a_checkpoint_of_a_larger_or_another_buffer_is_refused():
    large = Replay(40, 4, n_step=1, gamma=0.9)
    large.extend(steps(envs=2, length=15))  # the last step of each waits for the next batch
    with pytest.raises(ValueError, match="the checkpoint holds 28 rows, but the buffer has room for 20"):
        Replay(20, 4, n_step=1, gamma=0.9).load_state_dict(large.state_dict())
    with pytest.raises(ValueError, match=r"only one of the two runs .* \(replay.window\)"):
        Replay(40, 4, n_step=1, gamma=0.9, window=10).load_state_dict(large.state_dict())


def test_a_buffer_that_was_saved_empty_is_empty():
    empty, other = (Replay(20, 4, n_step=1, gamma=0.9) for _ in range(2))
    other.load_state_dict(empty.state_dict())
    assert len(other._transitions) == 0
