"""The evaluation command: the numbers training saw, any recipe's policy, videos, errors."""

import csv
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import films
import gymnasium
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageChops
from small_runs import train

import cvpo
import discrete_cvpo
import evaluate
import ppo_lag
import td3_lag
from safe_components.policies import registry
from safe_components.training import EnvConfig, load_policy, read_metrics, video
from safe_components.training.recipes import load_recipe

RECIPES = {recipe.Config.recipe: recipe for recipe in (cvpo, discrete_cvpo, td3_lag, ppo_lag)}
RUN = {"seed": 3, "total_frames": 800, "eval_interval": 200, "eval_episodes": 5, "checkpoint_interval": 200}


def trained(recipe, directory, *flags):
    train(recipe, directory, *flags, run=RUN)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind of policy, trained once."""
    root = tmp_path_factory.mktemp("runs")
    return {name: trained(recipe, root / name) for name, recipe in RECIPES.items()}


@pytest.fixture
def run_dir(runs, tmp_path):
    """A copy of the PPO run, not evaluated yet, to be damaged."""
    ignored = shutil.ignore_patterns("evaluation.csv")
    return Path(shutil.copytree(runs["ppo_lag"], tmp_path / "run", ignore=ignored))


def rows_of(run_dir, action=None):
    """The rows of one kind of action, or all of them."""
    with (run_dir / "evaluation.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if action in (None, row["action"])]


def numbers(rows):
    return [(row["reward"], row["cost"], row["length"]) for row in rows]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_last_evaluation_of_training_is_repeated(runs, recipe, capsys):
    evaluate.run([str(runs[recipe]), "--episodes", "5", "--seed", "3"])
    rows, seen = rows_of(runs[recipe], "mean"), read_metrics(runs[recipe] / "metrics.csv")
    assert [row["episode"] for row in rows] == ["1", "2", "3", "4", "5"]
    for kind, prefix in (("mean", "eval"), ("sampled", "eval_sampled")):
        assert (prefix + "_cost" in seen) is (kind == "mean" or recipe != "td3_lag")
        for name in ("reward", "cost", "length") if prefix + "_cost" in seen else ():
            mean = np.mean([float(row[name]) for row in rows_of(runs[recipe], kind)])
            # Both files hold 8 digits. A sample is the sum of numbers that round differently.
            assert mean == pytest.approx(seen[f"{prefix}_{name}"][-1], rel=1e-6, abs=1e-6)
    assert np.std([float(row["reward"]) for row in rows]) > 1e-3
    said = capsys.readouterr().out
    assert "checkpoint-000000000800" in said
    assert f"{recipe} on PointCircle, mean action, seed 3" in said


def test_the_newest_checkpoint_counts(run_dir):
    arguments = [str(run_dir), "--episodes", "5", "--seed", "3", "--actions", "mean"]
    evaluate.run(arguments)
    shutil.rmtree(run_dir / "checkpoint" / "checkpoint-000000000800")
    evaluate.run(arguments)
    newest, before = rows_of(run_dir)[:5], rows_of(run_dir)[5:]
    assert {row["checkpoint"] for row in newest} == {"checkpoint-000000000800"}
    assert {row["checkpoint"] for row in before} == {"checkpoint-000000000600"}
    assert numbers(newest) != numbers(before)
    seen = read_metrics(run_dir / "metrics.csv")
    assert seen["frames"].tolist() == [600, 800]
    assert np.mean([float(row["reward"]) for row in before]) == pytest.approx(
        seen["eval_reward"][0], rel=1e-6
    )


def test_both_kinds_of_action_are_reported_and_every_evaluation_is_kept(run_dir, capsys):
    evaluate.run([str(run_dir), "--episodes", "4"])
    said = capsys.readouterr().out
    assert said.index("mean action, seed 0") < said.index("sampled actions, seed 0")
    evaluate.run([str(run_dir), "--episodes", "4", "--actions", "sampled"])
    evaluate.run([str(run_dir), "--episodes", "2", "--seed", "7"])
    rows = rows_of(run_dir)
    assert [(row["action"], row["seed"], row["episode"]) for row in rows] == [
        *(("mean", "0", str(i)) for i in (1, 2, 3, 4)),
        *(("sampled", "0", str(i)) for i in (1, 2, 3, 4)),
        *(("sampled", "0", str(i)) for i in (1, 2, 3, 4)),
        *(("mean", "7", str(i)) for i in (1, 2)),
        *(("sampled", "7", str(i)) for i in (1, 2)),
    ]
    mean, sampled, again = numbers(rows[:4]), numbers(rows[4:8]), numbers(rows[8:12])
    assert sampled == again != mean  # sampled actions repeat with their seed
    assert {row["length"] for row in rows} == {"50"}


def test_a_deterministic_policy_has_no_sampled_actions(runs, tmp_path):
    directory = shutil.copytree(runs["td3_lag"], tmp_path / "run")
    (directory / "evaluation.csv").unlink(missing_ok=True)
    evaluate.run([str(directory), "--episodes", "2"])
    assert [row["action"] for row in rows_of(directory)] == ["mean", "mean"]


def test_a_read_only_run_is_evaluated_and_nothing_is_written(run_dir, capsys, monkeypatch):
    before = sorted(run_dir.rglob("*"))

    def refuse(path, *labels):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(evaluate, "append_csv", refuse)
    evaluate.run([str(run_dir), "--episodes", "2"])
    said = capsys.readouterr().out
    assert "over 2 episodes" in said
    assert re.search(r"nothing was written: .*Read-only file system: '.*evaluation\.csv'$", said.strip())
    assert sorted(run_dir.rglob("*")) == before


def test_a_file_with_other_columns_is_refused_before_the_work(run_dir):
    (run_dir / "evaluation.csv").write_text("episode,reward,cost,length,over_limit\n1,2,3,4,0\n")
    fails(r"evaluation\.csv has other columns \(episode, reward.*\): move it away", run_dir)


def test_several_costs_keep_their_names(tmp_path):
    flags = ["--env.cost-keys", "walls", "speed", "--cost-limit", "5", "10"]
    directory = trained(ppo_lag, tmp_path / "run", *flags)
    evaluate.run([str(directory), "--episodes", "2"])
    names = ["reward", "cost_walls", "cost_speed", "length", "over_limit"]
    assert list(rows_of(directory)[0]) == ["action", "seed", "checkpoint", "episode", *names]


def test_a_summary_by_hand():
    ended = {
        "reward": torch.tensor([1.0, 3.0]),
        "cost": torch.tensor([[20.0, 0.0], [40.0, 2.0]], dtype=torch.float64),
        "length": torch.tensor([50.0, 50.0]),
    }
    lines = evaluate.summary(ended, {"cost_walls": 25.0, "cost_speed": 5.0}).splitlines()
    assert [line.split()[-4:] for line in lines[1:5]] == [
        ["2.00", "1.00", "1.00", "3.00"],
        ["30.00", "10.00", "20.00", "40.00"],
        ["1.00", "1.00", "0.00", "2.00"],
        ["50.00", "0.00", "50.00", "50.00"],
    ]
    assert lines[2].startswith("cost_walls (limit 25)")
    assert lines[3].startswith("cost_speed (limit 5)")
    assert lines[5].split()[-1] == "50%"


def test_many_episodes_share_the_environments(run_dir):
    evaluate.run([str(run_dir), "--episodes", "60", "--actions", "mean"])
    assert len(rows_of(run_dir)) == 100  # rounded up to a multiple of 50


@pytest.fixture
def gif(monkeypatch):
    """As where imageio-ffmpeg is not installed."""
    monkeypatch.setattr(video, "imageio_ffmpeg", None)


def test_one_policy_is_measured_at_other_limits(tmp_path, gif, capsys):
    directory = trained(ppo_lag, tmp_path / "run", "--env.limits", 5, 75)
    few = [str(directory), "--episodes", "1", "--actions", "mean"]
    evaluate.run([*few, "--cost-limit", "5"])
    assert "cost (limit 5)" in capsys.readouterr().out
    evaluate.run([*few, "--video", "--video-episodes", "1"])
    assert "cost (limit 25)" in capsys.readouterr().out
    one, other = ((directory / f"evaluation{name}.csv").read_text() for name in ("-limit-5", ""))
    assert one != other  # the policy sees its limit
    assert (directory / "video.gif").is_file()


def frames_of(path):
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            yield image.convert("RGB")


def test_point_circle_is_drawn(run_dir, gif, capsys):
    evaluate.run([str(run_dir), "--episodes", "2", "--video", "--video-episodes", "2"])
    assert capsys.readouterr().out.splitlines()[-1] == str(run_dir / "video.gif")
    frames = list(frames_of(run_dir / "video.gif"))
    assert 60 < len(frames) <= 100  # two episodes of 50 steps; a GIF joins frames that are equal
    assert frames[0].size == (320, 320)
    assert ImageChops.difference(frames[0], frames[40]).getbbox() is not None


def test_a_film_of_the_front_page_has_the_numbers_of_its_episode(run_dir):
    pictures, said = films.film(run_dir, seed=0, every=5, steps=20, zoom=1.5)
    evaluate.run([str(run_dir), "--episodes", "1", "--seed", "0", "--actions", "mean"])
    row = rows_of(run_dir)[-1]
    assert [picture.size for picture in pictures] == [(films.SIZE, films.SIZE)] * 4
    assert said["reward"] == f"{float(row['reward']):.1f}"
    assert (said["cost"], said["steps"]) == (f"{float(row['cost']):g}", int(row["length"]))


class Painted(gymnasium.Env):
    """Renders its step number as a shade of red; one episode lasts 10 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  # Gymnasium's convention
    observation_space = gymnasium.spaces.Box(-9, 9, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == 10, False, {"cost": 0.5}

    def render(self):
        return np.full((64, 96, 3), (20 * self.steps, 0, 0), np.uint8)


class Blind(Painted):
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        super().__init__()


@pytest.fixture
def registered():
    gymnasium.register("Painted-v0", entry_point=Painted, max_episode_steps=50)
    gymnasium.register("Blind-v0", entry_point=Blind, max_episode_steps=50)
    yield
    del gymnasium.registry["Painted-v0"], gymnasium.registry["Blind-v0"]


def test_a_gymnasium_environment_renders_every_step(tmp_path, registered, gif):
    directory = trained(ppo_lag, tmp_path / "run", "--env.id", "Painted-v0")
    evaluate.run([str(directory), "--episodes", "2", "--video", "--video-episodes", "1"])
    frames = list(frames_of(directory / "video.gif"))
    assert frames[0].size == (96, 64)
    reds = [frame.getpixel((90, 60))[0] for frame in frames]
    np.testing.assert_allclose(reds, [20 * step for step in range(1, 11)], atol=8)  # a GIF's palette


def test_nothing_to_render_is_one_line_after_the_numbers(tmp_path, registered):
    directory = trained(ppo_lag, tmp_path / "run", "--env.id", "Blind-v0")
    with pytest.raises(SystemExit, match=r"^error: Blind-v0 cannot be rendered here \("):
        evaluate.run([str(directory), "--episodes", "2", "--video"])
    assert len(rows_of(directory, "mean")) == 2


def test_safety_gymnasium_renders(tmp_path):
    """In a process of its own: graphics are set up once per process, and may crash it."""
    flags = "--env.id SafetyPointGoal1-v0 --env.max-episode-steps 20 --total-frames 600 --eval-interval 0"
    directory = trained(ppo_lag, tmp_path / "run", *flags.split())
    command = [sys.executable, evaluate.__file__, str(directory), "--episodes", "1", "--video",
               "--video-episodes", "1"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    if "cannot be rendered here" in done.stderr:
        pytest.skip(f"no OpenGL without a screen: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    if path.suffix == ".gif":
        frames = list(frames_of(path))
        assert len(frames) == 20
        assert len(frames[10].getcolors(100_000)) > 50  # floor, sky, obstacles: not one flat colour


def test_frames_go_to_imageio_ffmpeg_where_it_is_installed(tmp_path, monkeypatch):
    """A stand-in for its writer, a generator that is primed with None and then sent bytes."""
    received = []

    def write_frames(path, size, fps):
        assert path.endswith("video.mp4")
        assert size == (320, 320)
        assert 30 < fps < 35
        while True:
            received.append((yield))

    monkeypatch.setattr(video, "imageio_ffmpeg", types.SimpleNamespace(write_frames=write_frames))
    idle = lambda data: data.set("action", torch.zeros(2))  # noqa: E731
    config = EnvConfig(id="PointCircle", frame_skip=1, max_episode_steps=7)
    written = video.record_video(idle, config, tmp_path / "video", episodes=2)
    assert written == tmp_path / "video.mp4"
    assert [len(frame) for frame in received if frame is not None] == [320 * 320 * 3] * 14


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_from_the_cpu_is_evaluated_on_cuda(run_dir):
    evaluate.run([str(run_dir), "--episodes", "5", "--seed", "3", "--device", "cuda"])
    rewards = [float(row["reward"]) for row in rows_of(run_dir)]
    assert np.isfinite(rewards).all()
    # The GPU draws other initial states, so the actions are compared, not the episodes.
    observation = torch.randn(50, 4)
    here, there = (load_policy(run_dir, device=device)(observation.to(device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)


def fails(said, *arguments):
    with pytest.raises(SystemExit, match=said) as stop:
        evaluate.run([str(argument) for argument in arguments])
    message = str(stop.value)
    assert message.startswith("error: ")
    assert "\n" not in message


def test_errors_are_one_line(run_dir, runs, tmp_path):
    fails("not a run directory: it holds no config.yaml", tmp_path)
    fails("episodes is 0, must be at least 1", run_dir, "--episodes", "0")
    fails("video_episodes is 0", run_dir, "--video-episodes", "0")
    fails("finds . CUDA devices", run_dir, "--device", "cuda:99")
    words = ("--actions", "sampled")
    fails("td3_lag is deterministic: omit --actions sampled", runs["td3_lag"], *words)


def change(run_dir, **entries):
    path = run_dir / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))


def test_a_configuration_that_was_changed_is_refused(run_dir):
    change(run_dir, recipe="no_such_recipe")
    with pytest.raises(SystemExit, match=r"was written by a run with another config\.yaml"):
        evaluate.run([str(run_dir), "--episodes", "5", "--seed", "3"])


def test_a_policy_of_ones_own_needs_the_file_of_its_builder(tmp_path, monkeypatch):
    """The builder is registered where it is decorated: in the process that evaluates, by ``--recipe``."""
    own, text = tmp_path / "my_ppo.py", Path(ppo_lag.__file__).read_text()
    head, tail = text.split("def make_policy")
    own.write_text(
        head
        + "from safe_components.policies import gaussian_policy, policy_builder\n\n"
        + "@policy_builder\ndef my_policy(observation_dim, action_low, action_high):\n"
        + "    return gaussian_policy.__wrapped__(observation_dim, action_low, action_high)\n\n"
        + "def make_policy(config, task):\n    return my_policy(task.observation_dim, **task.bounds)\n\n\n"
        + "def _replaced"
        + tail
    )
    # Not remembered, so that evaluation executes the file; the other recipes must stay the ones they are.
    directory = trained(load_recipe.__wrapped__(own), tmp_path / "run")
    monkeypatch.delitem(registry._BUILDERS, "my_policy")
    fails("no policy builder 'my_policy' is registered", directory)
    evaluate.run([str(directory), "--episodes", "2", "--recipe", str(own)])
    assert len(rows_of(directory)) == 4
    fails("nowhere.py: no such file", directory, "--recipe", "nowhere.py")
    fails(r"evaluate\.py is not a recipe: it holds no Config", directory, "--recipe", evaluate.__file__)


def test_a_run_of_an_older_layout_is_refused_by_name(run_dir):
    change(run_dir, recipe="ddpg_lag", layout=1)
    fails(r"config\.yaml has layout 1, but this version .* reads layout 2", run_dir)


def test_no_checkpoint_yet(run_dir):
    shutil.rmtree(run_dir / "checkpoint")
    fails("holds no checkpoint yet: one is written every", run_dir)


def test_the_configuration_of_an_environment_with_one_copy():
    with pytest.raises(ValueError, match="cannot be rendered here"):
        video.record_video(None, EnvConfig(id="Acrobat-v0", num_envs=4), Path("unused"))
