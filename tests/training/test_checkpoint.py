"""Checkpoints that are damaged, foreign or hostile: refused by name, and the one before is used."""

import contextlib
import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys

import pytest
import torch
from tensordict import TensorDict
from test_state_file import Hostile
from torchrl.checkpoint import GlobalRNGState

from safe_components.training import (
    CheckpointError,
    Checkpoints,
    RecipeConfig,
    Replay,
    Run,
    RunConfig,
    load_config,
    observation_norm,
    read_metrics,
)
from safe_components.training.run import _Clock


class PolicyFile:
    """A component that writes a file for other programs."""

    def dump(self, path):
        (path / "policy.txt").write_text("for a robot")


def components():
    model = torch.nn.Linear(2, 1)
    replay = Replay(20, 4, n_step=1, gamma=0.9)
    number, flag = torch.rand(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.bool)
    step = TensorDict(observation=number, reward=number, cost=number, done=flag, batch_size=[2, 3])
    step.update({"terminated": flag, "truncated": flag.clone()})
    replay.extend(TensorDict(observation=number, action=number, next=step, batch_size=[2, 3]))
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "norm": observation_norm(2),
        "replay": replay,
        "exported": PolicyFile(),
    }


def train(directory, frames, resume=False, **settings):
    """Add frames in steps of 10, each with a row, a new bias of the model and a checkpoint; the bias."""
    if resume:
        config = load_config(RecipeConfig, directory)
        settings = {"resume": directory, "seed": config.run.seed, **settings}
    settings = {"run_dir": directory, "total_frames": frames, "loggers": (), "progress": False} | settings
    parts = components()
    with Run(RecipeConfig(run=RunConfig(**settings)), **parts) as run:
        while not run.finished:
            with torch.no_grad():
                parts["model"].bias.fill_(run.frames + 10)
            run.advance(10)
            run.log({"episode_reward": float(run.frames), "episode_cost": 0.0})
            run.save()
    return parts["model"].bias.item()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leave out the picture of the curves, which takes longer than everything else."""
    monkeypatch.setattr(Run, "draw", lambda self: None)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    train(path, 40)
    return path


@pytest.fixture
def run_dir(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def checkpoints_of(run_dir, say=print):
    return Checkpoints(run_dir / "checkpoint", config=run_dir / "config.yaml", say=say)


def load(run_dir):
    """What is said while the newest whole checkpoint is loaded, and the bias of its model."""
    said, parts = [], components() | {"clock": _Clock(), "rng": GlobalRNGState()}
    checkpoints_of(run_dir, said.append).load(parts)
    return " ".join(said), parts["model"].bias.item()


def checkpoint(run_dir, frames):
    return run_dir / "checkpoint" / f"checkpoint-{frames:012d}"


FILES = [
    "clock.safetensors",
    "rng.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
    "norm.safetensors",
    "replay.safetensors",
    "exported/policy.txt",
    "manifest.json",
]


def test_a_checkpoint_holds_these_files(run_dir):
    assert [path.name[-2:] for path in sorted((run_dir / "checkpoint").iterdir())] == ["30", "40"]
    path = checkpoint(run_dir, 40)
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert found == set(FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == found - {"manifest.json"}
    for name, record in manifest["files"].items():
        content = (path / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def foreign(file):
    other = file.parents[len(file.parts) - file.parts.index("checkpoint") - 2] / "checkpoint-000000000030"
    name = file.relative_to(other.parent / "checkpoint-000000000040")
    file.write_bytes((other / name).read_bytes() + (b"" if "manifest" in file.name else b"\0"))


DAMAGES = {
    "truncated": truncate,
    "emptied": lambda file: file.write_bytes(b""),
    "flipped": flip,
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "missing": lambda file: file.unlink(),
    "foreign": foreign,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(name, damage, run_dir, capsys):
    DAMAGES[damage](checkpoint(run_dir, 40) / name)
    said, bias = load(run_dir)
    assert bias == 30.0
    assert f"{checkpoint(run_dir, 40)} is" in said
    assert name in said or (name, damage) == ("manifest.json", "flipped")
    assert f"the checkpoint before it is used: {checkpoint(run_dir, 30)}" in said


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(run_dir, capsys):
    flip(checkpoint(run_dir, 40) / "replay.safetensors")
    assert train(run_dir, 50, resume=True) == 50.0
    said = capsys.readouterr().out
    assert "checkpoint-000000000040 is damaged: the content of replay.safetensors has changed" in said
    assert "1 row of" in said  # of frame 40, which is collected again
    assert read_metrics(run_dir / "metrics.csv")["frames"].tolist() == [10, 20, 30, 40, 50]
    train(run_dir, 60, resume=True)  # the damaged checkpoint has been replaced by a whole one
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_file_that_the_disk_does_not_give_is_damage_but_no_permission_is_not(name, run_dir, monkeypatch):
    newest = checkpoint(run_dir, 40) / name

    def fails_with(error):
        def opened(self, *args, **kwargs):
            if self == newest:
                raise error
            return real(self, *args, **kwargs)

        return opened

    real = type(newest).open
    with monkeypatch.context() as patch:
        patch.setattr(type(newest), "open", fails_with(OSError(5, "Input/output error")))
        said, bias = load(run_dir)
    assert f"{newest.parent} cannot be read: [Errno 5] Input/output error" in said
    assert bias == 30.0
    monkeypatch.setattr(type(newest), "open", fails_with(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        load(run_dir)


def test_no_byte_of_a_manifest_can_change_unseen(run_dir):
    path = checkpoint(run_dir, 40)
    whole, checkpoints = (path / "manifest.json").read_bytes(), Checkpoints(path.parent)
    expected = checkpoints.verify(path)
    draw = random.Random(0)
    for position in range(0, len(whole), 3):
        content = bytearray(whole)
        content[position] ^= 1 << draw.randrange(8)
        (path / "manifest.json").write_bytes(content)
        with contextlib.suppress(CheckpointError):
            found = checkpoints.verify(path)
            # White space, or the fingerprint of the configuration, which is not compared here.
            assert {**found, "config": 0} == {**expected, "config": 0}


def test_if_all_are_damaged_nothing_starts_and_nothing_is_lost(run_dir):
    rows = (run_dir / "metrics.csv").read_bytes()
    (checkpoint(run_dir, 40) / "manifest.json").write_text("{")
    truncate(checkpoint(run_dir, 30) / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint can be used: .*40 is damaged.*30 is damaged: model"
    ):
        train(run_dir, 50, resume=True)
    assert (run_dir / "metrics.csv").read_bytes() == rows
    shutil.rmtree(run_dir / "checkpoint")
    with pytest.raises(CheckpointError, match="holds no checkpoint: the run ended before its first one"):
        train(run_dir, 50, resume=True)
    assert (run_dir / "metrics.csv").read_bytes() == rows


def test_an_added_file_is_refused(run_dir, capsys):
    (checkpoint(run_dir, 40) / "more.pt").write_bytes(b"1")
    train(run_dir, 50, resume=True)
    assert "holds a file that is not its own: more.pt" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused(run_dir, tmp_path, capsys):
    train(tmp_path / "other", 50, seed=1)
    shutil.copytree(checkpoint(tmp_path / "other", 50), checkpoint(run_dir, 50))
    assert train(run_dir, 60, resume=True) == 60.0
    said = capsys.readouterr().out
    assert "checkpoint-000000000050 was written by a run with another config.yaml" in said
    assert f"is used: {checkpoint(run_dir, 40)}" in said


def test_a_checkpoint_that_does_not_fit_is_an_error(run_dir):
    with pytest.raises(CheckpointError, match=r"does not hold other"):
        Checkpoints(run_dir / "checkpoint").load({"other": torch.nn.Linear(2, 1)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit model: .*size mismatch"):
        Checkpoints(run_dir / "checkpoint").load({"model": torch.nn.Linear(3, 1)})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pickle", "torch", "beside"])
def test_no_file_can_run_code(name, kind, run_dir, tmp_path):
    """A hostile checkpoint, whose manifest is right: an error, or an ignored file, but no code."""
    trace = tmp_path / "trace"
    for frames in (30, 40):
        path = checkpoint(run_dir, frames)
        file = path / name if kind != "beside" else (path / name).with_suffix(".pkl")
        if kind == "torch":
            torch.save({"state": Hostile(trace)}, file)
        else:
            file.write_bytes(pickle.dumps(Hostile(trace)))
        if file.name != "manifest.json":
            manifest = json.loads((path / "manifest.json").read_text())
            content = file.read_bytes()
            record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest["files"][file.relative_to(path).as_posix()] = record
            (path / "manifest.json").write_text(json.dumps(manifest))
    if kind == "beside" or name == "exported/policy.txt":
        assert load(run_dir)[1] == 40.0
    else:
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load(run_dir)
    assert not trace.exists()


def test_what_an_interrupted_process_left_is_removed(run_dir, capsys):
    stage = run_dir / "checkpoint" / ".stage-checkpoint-000000000050"
    shutil.copytree(checkpoint(run_dir, 40), stage)
    train(run_dir, 50, resume=True)
    assert f"removed {stage}" in capsys.readouterr().out
    assert {path.name[:11] for path in (run_dir / "checkpoint").iterdir()} == {"checkpoint-"}


def test_a_checkpoint_that_was_being_replaced_comes_back(run_dir):
    checkpoint(run_dir, 40).rename(run_dir / "checkpoint" / ".old-checkpoint-000000000040")
    train(run_dir, 50, resume=True)
    assert read_metrics(run_dir / "metrics.csv")["frames"].tolist() == [10, 20, 30, 40, 50]


def test_stray_files_that_are_named_like_checkpoints_are_told(run_dir, capsys):
    (run_dir / "checkpoint" / "checkpoint-best").write_text("mine")
    checkpoint(run_dir, 70).write_text("mine, too")
    checkpoint(run_dir, 80).mkdir()
    assert train(run_dir, 50, resume=True) == 50.0
    said = capsys.readouterr().out
    assert "checkpoint-best is not a checkpoint and is ignored" in said
    assert "checkpoint-000000000070 is not a checkpoint: it holds no manifest.json" in said
    assert "checkpoint-000000000080 is not a checkpoint: it holds no manifest.json" in said
    assert (run_dir / "checkpoint" / "checkpoint-best").read_text() == "mine"
    assert checkpoint(run_dir, 70).read_text() == "mine, too"
    assert checkpoint(run_dir, 50).is_dir()


def test_one_directory_is_not_used_by_two(run_dir):
    config = RecipeConfig(run=RunConfig(resume=run_dir, total_frames=50, loggers=(), progress=False))
    with Run(config, **components()) as run:
        with pytest.raises(BlockingIOError, match="is in use: another process trains there"):
            train(run_dir, 50, resume=True)
        run.advance(10)
    assert train(run_dir, 60, resume=True) == 60.0


def test_a_killed_process_leaves_no_lock(run_dir):
    code = f"""
import os, signal
from pathlib import Path
from safe_components.training import RecipeConfig, Run, RunConfig
config = RunConfig(resume=Path({str(run_dir)!r}), total_frames=50, loggers=(), progress=False)
run = Run(RecipeConfig(run=config))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    assert train(run_dir, 50, resume=True) == 50.0


def test_fewer_frames_than_were_reached_are_refused(run_dir):
    with pytest.raises(ValueError, match=r"total_frames is 30, but .* has already collected 40 frames"):
        train(run_dir, 30, resume=True)
    assert train(run_dir, 40, resume=True) == 40.0  # a finished run is left as it is


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "metrics.csv is missing: its 4 rows up to frame 40 are lost"),
        (b"", "metrics.csv is damaged: 0 of 4 rows"),
        (b"frames,episode_reward\n10,1\n20,", "metrics.csv is damaged: 2 of 4 rows"),
        (b"frames,episode_reward\n10,1\n2", "metrics.csv is damaged: 1 of 4 rows"),
        (b"frames,episode_reward\n10,1\n\xff\xfe\x00,1\n30,1\n40,1\n", "metrics.csv is damaged: 3 of 4 rows"),
        (b"frames,episode_reward\n10,1\n20,x\n30,1\n40,1\n", "metrics.csv is damaged: 3 of 4 rows"),
        (bytes(200), "metrics.csv is damaged: 0 of 4 rows"),
        (bytes(range(256)), "metrics.csv is damaged: 0 of 4 rows"),
    ],
)
def test_damaged_metrics_are_told_and_kept(content, said, run_dir, capsys):
    path = run_dir / "metrics.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    train(run_dir, 50, resume=True)
    assert said in capsys.readouterr().out
    if content is not None:
        assert (run_dir / "metrics.damaged.csv").read_bytes() == content
    assert read_metrics(path)["frames"].tolist()[-1] == 50
    train(run_dir, 60, resume=True)
    assert read_metrics(path)["frames"].tolist()[-2:] == [50, 60]


def test_a_row_cut_by_a_kill_after_the_checkpoint_is_no_damage(run_dir, capsys):
    with (run_dir / "metrics.csv").open("a") as file:
        file.write(file_row := (run_dir / "metrics.csv").read_text().splitlines()[-1].replace("40", "50", 1))
        file.write("\n" + file_row[:9])
    train(run_dir, 50, resume=True)
    said = capsys.readouterr().out
    assert "damaged" not in said
    assert "1 row of" in said
    assert "after frame 40 dropped: these frames are collected again" in said


def test_metrics_that_were_there_before_a_run_are_kept(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("frames,mine\n10,3\n")
    train(tmp_path / "run", 20)
    assert "1 row" in capsys.readouterr().out


def test_an_interruption_leaves_no_half_written_checkpoint(run_dir):
    class Interrupted:
        def dump(self, path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints_of(run_dir).save(50, {"model": torch.nn.Linear(2, 1), "interrupted": Interrupted()})
    assert {path.name[-2:] for path in (run_dir / "checkpoint").iterdir()} == {"30", "40"}


def test_a_file_named_like_an_interrupted_checkpoint_is_removed(run_dir):
    stage = run_dir / "checkpoint" / ".stage-checkpoint-000000000050"
    stage.write_text("a file")
    train(run_dir, 50, resume=True)
    assert not stage.exists()


def test_a_disk_that_fails_while_a_component_is_read_is_no_damage(run_dir):
    class Unreadable(torch.nn.Linear):
        def load_state_dict(self, state):
            raise OSError("input/output error")

    with pytest.raises(OSError, match="input/output error"):
        checkpoints_of(run_dir).load({"model": Unreadable(2, 1)})


@pytest.mark.parametrize(
    "change", [{"frames": "forty"}, {"files": []}, {"config": 3}, {"files": {"model.safetensors": {}}}]
)
def test_a_manifest_with_entries_of_another_type_is_damage(change, run_dir):
    path = checkpoint(run_dir, 40) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    said, bias = load(run_dir)
    assert "manifest.json cannot be read (TypeError" in said
    assert bias == 30.0
