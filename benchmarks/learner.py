"""One CVPO update: how fast, how near to its matrix products, how it compares with FSRL's, where the time goes.

    make bench-peers                    # once: FSRL in an environment of its own, .venv-peers
    make bench-learner                  # or: python benchmarks/learner.py [--blocks 20] [--threads 1 2]

Three sides take turns, block by block, so that all see the same machine; ratios are of neighbours within a
block, given as median and quartiles over the blocks:

- **ours**: the update of ``recipes/cvpo.py`` itself (critics, particles, E-step, M-step, samples from the buffer,
  metrics into the averages), on a buffer of random transitions;
- **products**: the matrix products of that update alone, operands at hand, in blocks that stay in cache. With the
  same products an update cannot be faster, so their time over the update's is the share of that limit reached;
- **FSRL**: ``policy.update`` of fast-safe-rl 0.1.0 on a buffer of the same size.

Each row says what is set. *Equal work*: one set of sizes for both (``--states``, ``--particles``, ``--m-iterations``,
``--hidden-sizes``, ``--reward-critics``, one cost critic), one-step targets, ReLU networks without layer norm. What
stays different is each side's own: FSRL's diagonal covariance and its single Adam step on the dual against a
full covariance and the dual solved to the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from learner_gemm import GemmLimit, Sizes, flops, update_products
from learner_peers import DEFAULT_PYTHON, INSTALL, FsrlUpdate

from learner_update import PHASES, Learner

import cvpo

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every buffer
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = {
    "states": "states of a batch",
    "particles": "actions per state",
    "m_iterations": "policy steps per update",
    "observation": "observation size",
    "actions": "action size",
    "reward_critics": "reward critics",
    "cost_critics": "cost critics",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table: the sizes of either side."""

    name: str
    ours: Sizes
    theirs: Sizes
    settings: dict[str, Any]
    their_n_step: int


def cases(sizes: Sizes) -> list[Case]:
    """Equal work at the sizes asked for, equal work at FSRL's defaults, each side's defaults."""
    plain = {"layer_norm": False, "n_step": 1}
    spaces = {"observation": sizes.observation, "actions": sizes.actions}
    fsrl = Sizes(256, 16, 1, (128, 128), **spaces, reward_critics=1, cost_critics=1)
    default = cvpo.Config()
    own = Sizes(
        default.batch_size,
        default.num_particles,
        default.m_iterations,
        default.hidden_sizes,
        **spaces,
        reward_critics=default.reward_critics,
        cost_critics=default.cost_critics,
    )
    return [
        Case("equal work", sizes, sizes, plain, 1),
        Case("equal work, FSRL's sizes", fsrl, fsrl, plain, 1),
        Case("each side's defaults", own, fsrl, {}, 2),
    ]


def start_fsrl(case: Case, transitions: int, python: Path) -> FsrlUpdate | None:
    """FSRL's side, or None with a line that says why there is none."""
    try:
        return FsrlUpdate(case.theirs, n_step=case.their_n_step, transitions=transitions, python=python)
    except FileNotFoundError as error:
        print(f"FSRL is left out: {error}")
    except RuntimeError as error:
        print(f"FSRL is left out of '{case.name}': {error}")
    return None


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every side in every block, by number of threads."""
    clock, number = CLOCKS[options.clock], options.updates
    learner = Learner(case.ours, transitions=options.transitions, clock=clock, settings=case.settings)
    limits = {threads: GemmLimit(case.ours, threads, clock) for threads in options.threads}
    fsrl = start_fsrl(case, options.transitions, options.peers_python)
    blocks: dict[int, list[dict[str, Any]]] = {threads: [] for threads in options.threads}

    def ours() -> list[dict[str, float]]:
        return learner.timed_updates(number)

    def block(threads: int, backwards: bool) -> dict[str, Any]:
        torch.set_num_threads(threads)
        sides = {
            "ours": ours,
            "products": lambda: [limits[threads].run() for _ in range(number)],
        }
        if fsrl is not None:
            sides["fsrl"] = lambda: fsrl.seconds(number, threads, options.clock) / number
        # Every other block runs backwards, so that a drift of the machine falls on all sides alike.
        return {side: sides[side]() for side in sorted(sides, reverse=backwards)}

    for threads in options.threads:  # warms up
        block(threads, False)
    for index in range(options.blocks):
        for threads in options.threads:
            blocks[threads].append(block(threads, bool(index % 2)))
    if fsrl is not None:
        fsrl.close()
    versions = None if fsrl is None else fsrl.versions
    return {"blocks": blocks, "fsrl_flops": None if fsrl is None else fsrl.flops, "fsrl_versions": versions}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {"median": median(values), "q1": low, "q3": high}


def summary(case: Case, measured: dict[str, Any]) -> dict[str, Any]:
    """The figures of a row: seconds an update, ratios within blocks, phases."""
    products = update_products(case.ours)
    by_threads = {}
    one_thread = measured["blocks"].get(1)
    for threads, blocks in measured["blocks"].items():
        updates = [median(sum(row.values()) for row in block["ours"]) for block in blocks]
        limits = [median(sum(row.values()) for row in block["products"]) for block in blocks]
        seconds = median(updates)
        phases = {p: median(row[p] for block in blocks for row in block["ours"]) for p in PHASES}
        alone = {
            p: median(row[p] for block in blocks for row in block["products"])
            for p in dict.fromkeys(product.phase for product in products)
        }
        by_threads[threads] = {
            "seconds": spread(updates),
            "products_seconds": spread(limits),
            "share_of_limit": spread([limit / update for limit, update in zip(limits, updates, strict=True)]),
            "flops_per_second": flops(products) / seconds,
            "products_flops_per_second": flops(products) / median(limits),
            "phases": {
                p: {"seconds": phases[p], "products_seconds": alone.get(p), "flops": flops(products, p)}
                for p in PHASES
            },
        }
        if "fsrl" in blocks[0]:
            theirs = [block["fsrl"] for block in blocks]
            by_threads[threads]["fsrl_seconds"] = spread(theirs)
            ratios = [fsrl / update for fsrl, update in zip(theirs, updates, strict=True)]
            by_threads[threads]["times_fsrl"] = spread(ratios)
        if one_thread and threads != 1:
            alone_updates = [median(sum(row.values()) for row in block["ours"]) for block in one_thread]
            ratios = [one / more for one, more in zip(alone_updates, updates, strict=True)]
            by_threads[threads]["times_one_thread"] = spread(ratios)
    return {
        "name": case.name,
        "ours": dataclasses.asdict(case.ours),
        "fsrl": dataclasses.asdict(case.theirs),
        "flops": flops(products),
        "fsrl_flops": measured["fsrl_flops"],
        "fsrl_versions": measured["fsrl_versions"],
        "threads": by_threads,
    }


def describe(sizes: dict[str, Any]) -> str:
    """The sizes in a line."""
    hidden = "×".join(str(width) for width in sizes["hidden_sizes"])
    return (
        f"{sizes['states']} states, {sizes['particles']} particles, {sizes['m_iterations']} M-iteration(s), "
        f"{hidden}, {sizes['reward_critics']} reward and {sizes['cost_critics']} cost critic(s)"
    )


def show(row: dict[str, Any]) -> None:
    """Print a row and its phases as Markdown."""
    print(f"\n### {row['name']}: {describe(row['ours'])}")
    if row["fsrl"] != row["ours"]:
        print(f"FSRL: {describe(row['fsrl'])}")
    counted = f"counted: {row['flops'] / 1e9:.2f} GFLOP an update"
    print(counted + (f", FSRL's {row['fsrl_flops'] / 1e9:.2f}" if row["fsrl_flops"] else "") + "\n")

    def ratio(value: dict[str, float] | None, percent: bool = False) -> str:
        if value is None:
            return ""
        scale, unit = (100, " %") if percent else (1, "")
        digits = 0 if percent else 2
        middle, low, high = (f"{scale * value[key]:.{digits}f}" for key in ("median", "q1", "q3"))
        return f"{middle}{unit} ({low}-{high})"

    print(
        "| threads | updates/s | GFLOP/s | products alone, GFLOP/s | share of that limit "
        "| FSRL, updates/s | × FSRL | × one thread |\n|" + "---:|" * 8
    )
    for threads, figures in row["threads"].items():
        fsrl = figures.get("fsrl_seconds")
        print(
            f"| {threads} | {1 / figures['seconds']['median']:.2f} | {figures['flops_per_second'] / 1e9:.0f} "
            f"| {figures['products_flops_per_second'] / 1e9:.0f} | {ratio(figures['share_of_limit'], True)} "
            f"| {'' if fsrl is None else format(1 / fsrl['median'], '.2f')} "
            f"| {ratio(figures.get('times_fsrl'))} | {ratio(figures.get('times_one_thread'))} |"
        )
    threads, figures = next(iter(row["threads"].items()))
    print(
        f"\n| phase, {threads} thread(s) | ms | share | its products alone, ms | GFLOP |\n|---|" + "---:|" * 4
    )
    total = sum(phase["seconds"] for phase in figures["phases"].values())
    for name, phase in figures["phases"].items():
        alone = phase["products_seconds"]
        print(
            f"| {name} | {1e3 * phase['seconds']:.2f} | {100 * phase['seconds'] / total:.1f} % "
            f"| {'' if alone is None else format(1e3 * alone, '.2f')} | {phase['flops'] / 1e9:.2f} |"
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    standard = Sizes()
    for name, text in SIZES.items():
        default = getattr(standard, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{text} ({default})"
        )
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=list(standard.hidden_sizes))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (1 2)")
    parser.add_argument("--blocks", type=int, default=20, help="turns of every side (20)")
    parser.add_argument("--updates", type=int, default=3, help="updates in a turn (3)")
    parser.add_argument("--transitions", type=int, default=100_000, help="in the buffer (100000)")
    parser.add_argument("--only", nargs="+", default=None, metavar="ROW", help="rows by number, from 1")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: the process's own time, which other work on the machine disturbs less; for one thread",
    )
    parser.add_argument(
        "--peers-python", type=Path, default=DEFAULT_PYTHON, help=f"where '{INSTALL}' put FSRL"
    )
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    options = parser.parse_args(arguments)
    for name in (*SIZES, "blocks", "updates"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if min(options.hidden_sizes) < 1 or min(options.threads) < 1:
        parser.error(
            f"--hidden-sizes {options.hidden_sizes} and --threads {options.threads} must be at least 1"
        )
    if options.transitions < options.states:
        parser.error(f"--transitions {options.transitions} must be at least --states {options.states}")
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    sizes = Sizes(
        **{name: getattr(options, name) for name in SIZES}, hidden_sizes=tuple(options.hidden_sizes)
    )
    machine = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clock": options.clock,
        "blocks": options.blocks,
        "updates_per_block": options.updates,
        "transitions": options.transitions,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    rows = []
    for number, case in enumerate(cases(sizes), start=1):
        if options.only is None or str(number) in options.only:
            rows.append(summary(case, measure(case, options)))
            show(rows[-1])
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
