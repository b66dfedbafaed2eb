"""The evaluation command: the numbers training saw, any recipe's policy, videos, errors."""

import csv
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

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
from safe_components.training import EnvConfig, observation_norm, read_metrics, video

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
    """A copy of the PPO run, to be damaged."""
    return Path(shutil.copytree(runs["ppo_lag"], tmp_path / "run"))


def rows_of(run_dir):
    with (run_dir / "evaluation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_last_evaluation_of_training_is_repeated(runs, recipe, capsys):
    evaluate.run([str(runs[recipe]), "--episodes", "5", "--seed", "3"])
    rows, seen = rows_of(runs[recipe]), read_metrics(runs[recipe] / "metrics.csv")
    assert [row["episode"] for row in rows] == ["1", "2", "3", "4", "5"]
    for name in ("reward", "cost"):
        mean = np.mean([float(row[name]) for row in rows])
        assert mean == pytest.approx(seen[f"eval_{name}"][-1], rel=1e-6, abs=1e-6)  # both files hold 8 digits
    assert np.std([float(row["reward"]) for row in rows]) > 1e-3
    said = capsys.readouterr().out
    assert "checkpoint-000000000800" in said
    assert f"{recipe} on PointCircle, mean action, seed 3" in said


def test_the_newest_checkpoint_counts(run_dir):
    evaluate.run([str(run_dir), "--episodes", "5", "--seed", "3"])
    newest = rows_of(run_dir)
    shutil.rmtree(run_dir / "checkpoint" / "checkpoint-000000000800")
    evaluate.run([str(run_dir), "--episodes", "5", "--seed", "3"])
    assert rows_of(run_dir) != newest
    seen = read_metrics(run_dir / "metrics.csv")
    assert seen["frames"].tolist() == [600, 800]
    assert np.mean([float(row["reward"]) for row in rows_of(run_dir)]) == pytest.approx(
        seen["eval_reward"][0], rel=1e-6
    )


def test_sampled_actions_repeat_with_their_seed_and_differ_from_the_mean(run_dir):
    seen = {}
    for name, flags in {"mean": [], "a": ["--stochastic"], "b": ["--stochastic"]}.items():
        evaluate.run([str(run_dir), "--episodes", "4", *flags])
        seen[name] = rows_of(run_dir)
    assert seen["a"] == seen["b"] != seen["mean"]


def test_a_summary_by_hand():
    ended = {
        "reward": torch.tensor([1.0, 3.0]),
        "cost": torch.tensor([[20.0, 0.0], [40.0, 2.0]], dtype=torch.float64),
        "length": torch.tensor([50.0, 50.0]),
    }
    lines = evaluate.summary(ended, [25.0, 5.0]).splitlines()
    assert [line.split()[-4:] for line in lines[1:5]] == [
        ["2.00", "1.00", "1.00", "3.00"],
        ["30.00", "10.00", "20.00", "40.00"],
        ["1.00", "1.00", "0.00", "2.00"],
        ["50.00", "0.00", "50.00", "50.00"],
    ]
    assert lines[2].startswith("cost (limit 25)")
    assert lines[3].startswith("cost_1 (limit 5)")
    assert lines[5].split()[-1] == "50%"


def test_many_episodes_share_the_environments(run_dir):
    evaluate.run([str(run_dir), "--episodes", "60"])
    assert len(rows_of(run_dir)) == 100  # rounded up to a multiple of 50


def frames_of(path):
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            yield image.convert("RGB")


@pytest.fixture
def gif(monkeypatch):
    """As where imageio-ffmpeg is not installed."""
    monkeypatch.setattr(video, "imageio_ffmpeg", None)


def test_point_circle_is_drawn(run_dir, gif, capsys):
    evaluate.run([str(run_dir), "--episodes", "2", "--video", "--video-episodes", "2"])
    assert capsys.readouterr().out.splitlines()[-1] == str(run_dir / "video.gif")
    frames = list(frames_of(run_dir / "video.gif"))
    assert 60 < len(frames) <= 100  # two episodes of 50 steps; a GIF joins frames that are equal
    assert frames[0].size == (320, 320)
    assert ImageChops.difference(frames[0], frames[40]).getbbox() is not None


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
    assert len(rows_of(directory)) == 2


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
    written = video.record_video(idle, observation_norm(4), config, tmp_path / "video", episodes=2)
    assert written == tmp_path / "video.mp4"
    assert [len(frame) for frame in received if frame is not None] == [320 * 320 * 3] * 14


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_from_the_cpu_is_evaluated_on_cuda(run_dir):
    evaluate.run([str(run_dir), "--episodes", "5", "--seed", "3", "--device", "cuda"])
    seen = read_metrics(run_dir / "metrics.csv")["eval_reward"][-1]
    # Rounding differs, and the motion is not chaotic.
    assert np.mean([float(row["reward"]) for row in rows_of(run_dir)]) == pytest.approx(seen, rel=1e-3)


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
    fails("td3_lag is deterministic: omit --stochastic", runs["td3_lag"], "--stochastic")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sarsa", "there is no recipe 'sarsa' in .*; name the recipe's file with --recipe FILE"),
        ("../cvpo", r"there is no recipe '\.\./cvpo' in "),
        ("study", r"study\.py has no make_policy"),
        ("evaluate", r"evaluate\.py is not a recipe: it holds no Config"),
    ],
)
def test_an_unknown_recipe(run_dir, name, said):
    change(run_dir, recipe=name)
    fails(said, run_dir)


def change(run_dir, **entries):
    path = run_dir / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))


def test_a_recipe_of_ones_own_is_named_by_its_file_and_never_by_the_run(run_dir, tmp_path, capsys):
    own = tmp_path / "my_ppo.py"
    text = Path(ppo_lag.__file__).read_text()
    own.write_text(text.replace('recipe: ClassVar[str] = "ppo_lag"', 'recipe: ClassVar[str] = "my_ppo"'))
    shutil.copy(own, run_dir)
    change(run_dir, recipe="my_ppo")
    fails("there is no recipe 'my_ppo'", run_dir)
    evaluate.run([str(run_dir), "--episodes", "5", "--seed", "3", "--recipe", str(own)])
    assert "my_ppo on PointCircle" in capsys.readouterr().out
    seen = read_metrics(run_dir / "metrics.csv")["eval_reward"][-1]
    assert np.mean([float(row["reward"]) for row in rows_of(run_dir)]) == pytest.approx(seen, rel=1e-6)
    fails("belongs to a run of my_ppo, not of ppo_lag", run_dir, "--recipe", ppo_lag.__file__)
    fails("nowhere.py: no such file", run_dir, "--recipe", "nowhere.py")


def test_a_run_of_an_older_layout_is_refused_by_name(run_dir):
    change(run_dir, recipe="ddpg_lag", layout=1)
    fails(r"config\.yaml has layout 1, but this version .* reads layout 2", run_dir)


def test_a_checkpoint_without_policy_or_norm(run_dir):
    for name in ("checkpoint-000000000600", "checkpoint-000000000800"):
        manifest = run_dir / "checkpoint" / name / "manifest.json"
        assert manifest.is_file()
        text = manifest.read_text()
        manifest.write_text(text.replace('"norm"', '"scaling"'))
    fails("lacks norm: pass both to Run", run_dir)


def test_no_checkpoint_yet(run_dir):
    shutil.rmtree(run_dir / "checkpoint")
    fails("holds no checkpoint yet: one is written every 200 frames", run_dir)


def test_the_configuration_of_an_environment_with_one_copy():
    with pytest.raises(ValueError, match="cannot be rendered here"):
        video.record_video(None, None, EnvConfig(id="Acrobat-v0", num_envs=4), Path("unused"))
