"""Measure one CVPO update: its speed, the speed of its matrix products alone, and that of FSRL's update.

    make bench-peers                 # once: FSRL in an environment of its own, .venv-peers
    make bench-learner               # or: python benchmarks/learner.py --blocks 20 --threads 1 2

Three sides take turns, block by block, so that all see the same machine. Ratios are taken within each block
and given as median (quartiles) over the blocks.

- ours: the update of recipes/cvpo.py itself (critics, particles, E-step, M-step, samples from the buffer,
  metrics into the averages), on a buffer of random transitions;
- products: the matrix products of that update alone, with operands at hand, in blocks that stay in cache. No
  update that computes these products is faster. Their time over the update's is the share of the limit;
- FSRL: policy.update of fast-safe-rl 0.1.0, on a buffer of the same size.

Four rows:

1. equal work: the sizes given here for both sides, one-step targets, ReLU networks without layer norm. FSRL's
   policy still has a diagonal covariance, and its E-step is one Adam step on the multipliers. Ours has a full
   covariance, and its E-step solves the dual to its optimum;
2. the same with FSRL's default sizes;
3. each side's defaults;
4. the first, with our particles scored in bfloat16.

OmniSafe is not among the peers, because it no longer has CVPO and does not install on Python 3.11.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from learner_gemm import CountFlops, GemmLimit, Sizes, flops, update_products
from learner_peers import DEFAULT_PYTHON, INSTALL, FsrlUpdate
from learner_report import into_page, show, summary
from learner_update import TimedUpdate, cvpo

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every buffer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = {
    "states": "states of a batch",
    "particles": "actions per state",
    "m_iterations": "policy steps per update",
    "observation": "size of an observation",
    "actions": "size of an action",
    "reward_critics": "members of the reward's ensemble, 1 or 2 for FSRL",
    "cost_critics": "members of the cost's ensemble, 1 for FSRL",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Sizes of both sides, further settings of our recipe, and the steps of FSRL's targets."""

    name: str
    ours: Sizes
    fsrl: Sizes
    settings: dict[str, Any]
    fsrl_n_step: int


def rows(sizes: Sizes) -> list[Row]:
    """The rows of the benchmark; ``sizes`` are those of the first."""
    spaces = {"observation": sizes.observation, "actions": sizes.actions}
    fsrl = Sizes(256, 16, 1, (128, 128), reward_critics=1, cost_critics=1, **spaces)
    config = cvpo.Config()
    own = Sizes(
        config.replay.batch_size,
        config.estep.num_particles,
        config.mstep.iterations,
        config.policy.hidden_sizes,
        reward_critics=config.critics.reward_members,
        cost_critics=config.critics.cost_members,
        **spaces,
    )
    plain = {"critics": {"layer_norm": False, "n_step": 1}}
    bfloat16 = plain | {"execution": {"scoring_precision": "bfloat16"}}
    return [
        Row("1. equal work", sizes, sizes, plain, 1),
        Row("2. equal work, FSRL's default sizes", fsrl, fsrl, plain, 1),
        Row("3. each side's defaults", own, fsrl, {}, 2),
        Row("4. equal work, particles in bfloat16", sizes, sizes, bfloat16, 1),
    ]


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Run all sides of a row in turns; return its figures."""
    clock, number = CLOCKS[options.clock], options.updates
    torch.set_num_threads(1)
    update = TimedUpdate(row.ours, row.settings, transitions=options.transitions, clock=clock)
    with CountFlops() as executed:
        update()
    limits = {threads: GemmLimit(row.ours, threads, clock) for threads in options.threads}
    fsrl = None
    try:
        fsrl = FsrlUpdate(row.fsrl, row.fsrl_n_step, options.transitions, options.peers_python)
    except (FileNotFoundError, RuntimeError) as error:
        print(f"\nFSRL is left out: {error}")

    def block(threads: int, backwards: bool) -> dict[str, Any]:
        torch.set_num_threads(threads)
        sides = {
            "ours": lambda: update.timed(number),
            "products": lambda: [limits[threads].run() for _ in range(number)],
        }
        if fsrl is not None:
            sides["fsrl"] = lambda: fsrl.seconds(number, threads, options.clock) / number
        # Every other block runs backwards, so that a drift of the machine falls on all sides alike.
        times = {side: sides[side]() for side in sorted(sides, reverse=backwards)}
        return times | {"peak": limits[threads].peak()}

    for threads in options.threads:  # warms up
        block(threads, backwards=False)
    update.metrics()
    blocks: dict[int, list[dict[str, Any]]] = {threads: [] for threads in options.threads}
    for index in range(options.blocks):
        for threads in options.threads:
            blocks[threads].append(block(threads, backwards=bool(index % 2)))
    theirs = None
    if fsrl is not None:
        theirs = {"sizes": dataclasses.asdict(row.fsrl), "flops": fsrl.flops, "versions": fsrl.versions}
        fsrl.close()
    products = update_products(row.ours)
    return {
        "name": row.name,
        "ours": dataclasses.asdict(row.ours),
        "flops": flops(products),
        "executed_flops": executed.total,
        "fsrl": theirs,
        "metrics": update.metrics(),
        "threads": summary(products, blocks),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; exit with a message where a value is out of its range."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, standard = parser.add_argument, Sizes()
    for name, text in SIZES.items():
        default = getattr(standard, name)
        add(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{text} ({default})")
    add(
        "--hidden-sizes", type=int, nargs="+", default=standard.hidden_sizes, help="of all networks (256 256)"
    )
    add("--threads", type=int, nargs="+", default=[1, 2], help="PyTorch's threads, each measured (1 2)")
    add("--blocks", type=int, default=20, help="turns of every side (20)")
    add("--updates", type=int, default=3, help="updates in a turn (3)")
    add("--transitions", type=int, default=100_000, help="transitions in the buffer (100000)")
    add("--rows", type=int, nargs="+", default=[1, 2, 3, 4], help="rows to measure (1 2 3 4)")
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu is the process's own time, which other work on the machine disturbs less; for one thread",
    )
    add("--peers-python", type=Path, default=DEFAULT_PYTHON, help=f"FSRL's, as '{INSTALL}' made it")
    add("--json", type=Path, help="write the figures to this file; other rows that it holds stay there")
    add("--page", type=Path, help="write the tables into this page, between its two 'figures' comments")
    add("--given", type=Path, help="show the figures of this file, measured earlier, and measure nothing")
    options = parser.parse_args(arguments)
    for name in (*SIZES, "blocks", "updates", "hidden_sizes", "threads", "rows"):
        value = getattr(options, name)
        if min(value if isinstance(value, (list, tuple)) else [value]) < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be at least 1")
    if max(options.rows) > 4:
        parser.error(f"--rows {options.rows}: there are rows 1 to 4")
    if options.transitions < options.states:
        parser.error(f"--transitions {options.transitions} must be at least --states {options.states}")
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    return options


def processor() -> str:
    """Name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the rows, or print those of a file; write them where asked."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.given is not None:
        known = json.loads(options.given.read_text())
        print("\n".join(map(show, known.values())))
    else:
        known = measure_all(options, arguments)
    if options.json is not None:
        before = json.loads(options.json.read_text()) if options.json.exists() else {}
        known = dict(sorted((before | known).items()))
        options.json.write_text(json.dumps(known, indent=1) + "\n")
    if options.page is not None:
        options.page.write_text(into_page(options.page.read_text(), known.values()))


def measure_all(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Measure the requested rows, print each when it is complete, and return them by name."""
    sizes = {name: getattr(options, name) for name in SIZES}
    machine = {
        "command": " ".join(["python benchmarks/learner.py", *arguments]),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clock": options.clock,
        "blocks": options.blocks,
        "updates_per_block": options.updates,
        "transitions": options.transitions,
    }
    results = {}
    for number, row in enumerate(rows(Sizes(hidden_sizes=tuple(options.hidden_sizes), **sizes)), start=1):
        if number in options.rows:
            results[row.name] = measure(row, options) | {"measured": machine}
            print(show(results[row.name]), flush=True)
    return results


if __name__ == "__main__":
    main()
