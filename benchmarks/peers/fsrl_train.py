"""Train one of FSRL's agents at its own defaults, in the environment that ``make bench-peers`` makes.

    python benchmarks/peers/fsrl_train.py '{"agent": "CVPO", "task": "SafetyCarRun-v0", ...}' 1

The arguments are the settings as JSON (``agent``, ``task``, ``cost_limit``, ``frames``, ``seed``) and the
file descriptor for the answers. A line of JSON follows each batch of episodes and its updates: the
``frames`` so far, the ``seconds`` since training began, and the mean ``reward`` and ``cost`` of the episodes.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import sys
import time
from typing import Any

import gymnasium
import torch
from fsrl import agent as agents
from fsrl.utils import BaseLogger
from tianshou.env import DummyVectorEnv

FILES = {"CVPO": "cvpo_cfg", "SACLag": "sacl_cfg"}


class Rows(BaseLogger):
    """FSRL's logger, which writes the latest episodes after each of its updates."""

    def __init__(self, answers: Any, start: float) -> None:
        super().__init__()
        self.answers, self.start, self.latest = answers, start, {}

    def store(self, tab: str | None = None, **values: Any) -> None:
        """Keep the latest values in addition to the means that FSRL asks for."""
        super().store(tab, **values)
        self.latest |= values

    def write_without_reset(self, frames: int) -> None:
        """FSRL calls this after the episodes of a batch and the updates that follow them."""
        row = {"frames": frames, "seconds": time.perf_counter() - self.start}
        row |= {name: float(self.latest[f"train/{name}"]) for name in ("reward", "cost")}
        print(json.dumps(row), file=self.answers)


def make_env(task: str) -> gymnasium.Env:
    """Make a task of Bullet-Safety-Gym, or of Safety-Gymnasium where that is installed."""
    importlib.import_module("bullet_safety_gym")
    if task in gymnasium.registry:
        return gymnasium.make(task)
    safety = importlib.import_module("safety_gymnasium")
    return safety.wrappers.SafetyGymnasium2Gymnasium(safety.make(task))


def main() -> None:
    """Train, and write the rows."""
    settings, answers = json.loads(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w", buffering=1)
    torch.set_num_threads(1)
    config_file = importlib.import_module(f"fsrl.config.{FILES[settings['agent']]}")
    # FSRL's own choice for its kind of tasks.
    kind = "Bullet1MCfg" if settings["cost_limit"] == 10 else "MujocoBaseCfg"
    config = dataclasses.asdict(getattr(config_file, kind)())
    config |= {name: settings[name] for name in ("cost_limit", "seed")}
    config |= {"thread": 1, "epoch": -(-settings["frames"] // config["step_per_epoch"])}
    config |= {"verbose": False, "show_progress": False, "save_ckpt": False}

    def of(function: Any) -> dict[str, Any]:
        return {name: config[name] for name in inspect.signature(function).parameters if name in config}

    make = getattr(agents, settings["agent"] + "Agent")
    copies = min(config["training_num"], config["episode_per_collect"])
    envs = DummyVectorEnv([lambda: make_env(settings["task"]) for _ in range(copies)])
    start = time.perf_counter()
    agent = make(make_env(settings["task"]), logger=Rows(answers, start), **of(make))
    agent.learn(envs, **of(agent.learn))


if __name__ == "__main__":
    main()
