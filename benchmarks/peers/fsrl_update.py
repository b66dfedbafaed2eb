"""FSRL's own CVPO update as a small server, in the Python environment that ``make bench-peers`` makes.

    python benchmarks/peers/fsrl_update.py '{"states": 300, "particles": 64, ...}' 1

The arguments are the settings as JSON and the file descriptor for the answers, one JSON object a line. The
first answer holds ``ready``, ``flops`` (counted during one update) and ``versions``. Each line
``{"updates": n, "threads": t, "clock": "wall" or "cpu"}`` on standard input is answered with
``{"seconds": s}``. The server ends with its input.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from importlib.metadata import version

import gymnasium
import numpy as np
import torch
from fsrl.agent import CVPOAgent
from fsrl.utils.net.continuous import DoubleCritic
from tianshou.data import Batch, ReplayBuffer
from tianshou.utils.net.common import Net
from torch.utils.flop_counter import FlopCounterMode

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class SpacesOnly(gymnasium.Env):
    """A task of given sizes, for the agent to read its spaces from."""

    spec = gymnasium.envs.registration.EnvSpec("SpacesOnly-v0", max_episode_steps=500)

    def __init__(self, observation: int, actions: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (actions,), np.float32)


def filled_buffer(number: int, observation: int, actions: int) -> ReplayBuffer:
    """Random transitions in episodes of 500 steps, kept as float32."""
    random = np.random.default_rng(0)
    truncated = np.arange(number) % 500 == 499
    buffer = ReplayBuffer(number)
    buffer.set_batch(
        Batch(
            obs=random.standard_normal((number, observation), np.float32),
            obs_next=random.standard_normal((number, observation), np.float32),
            act=random.standard_normal((number, actions), np.float32).clip(-1, 1),
            rew=random.standard_normal(number),
            terminated=np.zeros(number, bool),
            truncated=truncated,
            done=truncated,
            info=Batch(cost=(random.random(number) < 0.1).astype(float)),
        )
    )
    buffer._size = number
    return buffer


def make_agent(settings: dict) -> CVPOAgent:
    """Make the package's agent. Its switch doubles all critics, so a second reward critic is added here."""
    env = SpacesOnly(settings["observation"], settings["actions"])
    hidden = tuple(settings["hidden_sizes"])
    agent = CVPOAgent(
        env,
        thread=1,
        sample_act_num=settings["particles"],
        mstep_iter_num=settings["m_iterations"],
        n_step=settings["n_step"],
        hidden_sizes=hidden,
    )
    if settings["cost_critics"] != 1 or settings["reward_critics"] not in (1, 2):
        raise ValueError("FSRL has one cost critic, and one or two reward critics")
    if settings["reward_critics"] == 2:
        policy = agent.policy
        shapes = (env.observation_space.shape, env.action_space.shape)
        nets = [Net(*shapes, hidden_sizes=hidden, concat=True) for _ in range(2)]
        policy.critics[0] = DoubleCritic(*nets)
        policy.critics_old = copy.deepcopy(policy.critics).eval()
        policy.critics_optim = torch.optim.Adam(policy.critics.parameters(), lr=1e-3)
    return agent


def main() -> None:
    """Build the update, then time it for each request."""
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(int(sys.argv[2]), "w", buffering=1)
    torch.manual_seed(0)
    policy = make_agent(settings).policy
    buffer = filled_buffer(settings["transitions"], settings["observation"], settings["actions"])
    policy.train()
    policy.pre_update_fn()

    def update() -> None:
        policy.update(settings["states"], buffer)

    update()
    with FlopCounterMode(display=False) as counter:
        update()
    packages = ("fast-safe-rl", "tianshou", "torch", "numpy")
    ready = {"ready": True, "flops": counter.get_total_flops(), "versions": {p: version(p) for p in packages}}
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        clock = CLOCKS[request["clock"]]
        start = clock()
        for _ in range(request["updates"]):
            update()
        print(json.dumps({"seconds": clock() - start}), file=answers)


if __name__ == "__main__":
    main()
