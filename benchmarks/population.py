"""Updates per second of CVPO's learners as one batch, beside the same learners in turn.

    python benchmarks/population.py                    # 2, 5 and 15 members, one thread of the CPU
    python benchmarks/population.py --device cuda --execution graph

Both make the same updates on random transitions. The batch's time includes the samples from the buffers and
the random numbers of every member. On a CPU the clock is that of the process, so other programs do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from learner_update import RandomTask

import cvpo
from safe_components.training import Population, Replay, execute, overlay

TRANSITIONS = 20_000


def make_members(config: cvpo.Config, count: int) -> list[tuple[cvpo.CVPO, Replay]]:
    """Make learners with a buffer of random transitions each."""
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        task = RandomTask(60, 2, torch.device(config.run.device))
        replay = Replay.of(config, window=config.replay.window)
        replay.extend(task.steps(TRANSITIONS))
        made.append((cvpo.CVPO(config, task), replay))
    return made


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the mean time of a call, after three that do not count."""
    for index in range(3 + repeats):
        if index == 3:
            start = _now(device)
        call()
    return (_now(device) - start) / repeats


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def measure(config: cvpo.Config, count: int, repeats: int) -> tuple[float, float]:
    """Return the updates per second of ``count`` members in turn and as one batch."""
    device = torch.device(config.run.device)
    single, replay = make_members(config, 1)[0]
    alone = execute(config.execution, single, device)
    in_turn = 1.0 / seconds(lambda: alone(*replay.sample()), device, repeats)
    members = make_members(config, count)
    population = Population([learner for learner, _ in members], members[0][1].sample())
    together = execute(config.execution, population, device)

    def update() -> None:
        asked = [replay.sample() for _, replay in members]
        noise = population.stack_noise([population.draw_noise() for _ in members])
        together(*(torch.stack(list(same)) for same in zip(*asked, strict=True)), noise)

    return in_turn, count / seconds(update, device, repeats)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each number of members."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, nargs="+", default=[2, 5, 15], help="sizes of the batch")
    parser.add_argument("--repeats", type=int, default=20, help="updates that are timed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--execution", choices=("eager", "graph"), default="eager")
    parser.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="settings of the recipe")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = {"run.device": options.device, "execution.mode": options.execution, "env.frame_skip": 1}
    settings |= {"replay.size": TRANSITIONS, "replay.window": TRANSITIONS}
    settings |= {path: int(value) for path, value in (text.split("=") for text in options.set)}
    config = overlay(cvpo.Config(), settings, "benchmark")
    print("members  updates/s in turn  as one batch  ratio")
    for count in options.members:
        in_turn, together = measure(config, count, options.repeats)
        print(f"{count:7}  {in_turn:17.1f}  {together:12.1f}  {together / in_turn:5.2f}")


if __name__ == "__main__":
    main()
