"""Film one episode of a finished run, as a small animated picture for the front page.

    python recipes/cvpo.py --seed 17 --run-dir runs/circle
    python docs/scripts/films.py --run runs/circle --name point_circle1
    python docs/scripts/films.py                                   # the table of the films that are there

The film shows the mean action in the first episode after ``--seed``. The reward and the cost of this whole
episode go to ``docs/data/films.csv`` with the command that trained the run. The film itself may show only the
first steps, and every n-th of them. The front page holds the table that this script prints, and a test
compares the two.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from columns import DOCS
from PIL import Image

from safe_components import keys
from safe_components.training import RecipeConfig, Task, load_policy, overlay, with_run
from safe_components.training.config import read_run
from safe_components.training.video import picture_of, rendered_env

COLUMNS = ("name", "task", "command", "seed", "reward", "cost", "limit", "steps", "shown")
SIZE = 200  # pixels
MILLISECONDS = 80  # per picture


@torch.no_grad()
def film(
    run_dir: Path, seed: int, every: int, steps: int, zoom: float
) -> tuple[list[Image.Image], dict[str, Any]]:
    """Return the pictures of one episode, and what it earned and cost."""
    saved = read_run(run_dir)["config"]
    shared = {"env": saved["env"] | {"num_envs": 1}, "budget.cost_limit": saved["budget"]["cost_limit"]}
    config = with_run(overlay(RecipeConfig(), shared, str(run_dir / "config.yaml")), eval_episodes=1)
    env = Task(config).with_inputs(rendered_env(config.env, seed, 2 * SIZE))
    policy, pictures = load_policy(run_dir), []
    state, done, length, reward, cost = env.reset(), False, 0, 0.0, 0.0
    while not done:
        if length < steps and length % every == 0:
            picture = picture_of(env)
            side = min(picture.size) / zoom
            left, top = (picture.width - side) / 2, 0.55 * (picture.height - side)
            box = (left, top, left + side, top + side)
            pictures.append(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box))
        step = env.step(state.set(keys.ACTION, policy(state)[keys.ACTION]))["next"]
        length, reward, cost = length + 1, reward + float(step["reward"]), cost + float(step["cost"].sum())
        state, done = step.exclude("reward", "cost"), bool(step["done"])
    env.close()
    said = {"task": config.env.id, "seed": seed, "reward": f"{reward:.1f}", "cost": f"{cost:g}"}
    return pictures, said | {"limit": f"{config.budget.cost_limit[0]:g}", "steps": length}


def table(rows: list[dict[str, str]]) -> str:
    """Return the films side by side, each above its task and numbers, and below them the commands."""
    lines = [
        [f"![{row['task']}](docs/figures/films/{row['name']}.webp)" for row in rows],
        ["---"] * len(rows),
        [row["task"].removeprefix("Safety").rpartition("-")[0] for row in rows],
        [f"reward {row['reward']}" for row in rows],
        [f"cost {row['cost']}, limit {row['limit']}" for row in rows],
    ]
    commands = [row["command"] for row in rows]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", "```sh", *commands, "```"])


def main() -> None:
    """Add or replace a film if a run is named; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="directory of a finished run")
    parser.add_argument("--name", help="name of the film")
    parser.add_argument("--command", default="", help="command that trained the run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episode")
    parser.add_argument("--every", type=int, default=1, help="show every n-th step")
    parser.add_argument("--steps", type=int, default=10**9, help="show only the first steps")
    parser.add_argument("--zoom", type=float, default=1.0, help="enlarge the middle of the picture")
    given = parser.parse_args()
    path = DOCS / "data" / "films.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    if given.run:
        pictures, row = film(given.run, given.seed, given.every, given.steps, given.zoom)
        shown = f"{min(given.steps, row['steps'])} steps, every {given.every}"
        row |= {"name": given.name, "command": given.command, "shown": shown}
        target = DOCS / "figures" / "films" / f"{given.name}.webp"
        target.parent.mkdir(exist_ok=True)
        first, *others = pictures
        first.save(
            target, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, quality=55, method=6
        )
        rows = [kept for kept in rows if kept["name"] != given.name] + [row]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
