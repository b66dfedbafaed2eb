"""Measure CVPO on a CUDA device: updates/s, what bounds them, and frames/s of the whole loop.

    python benchmarks/gpu.py                                  # all of it, a few minutes
    python benchmarks/gpu.py --rows 1 --blocks 30 --json gpu.json
    python benchmarks/gpu.py --no-loop                        # updates only

An update is that of recipes/cvpo.py itself, on a buffer of random transitions on the device. It includes the
samples from the buffer. The recipe's execution modes take turns, block by block. Times are medians over the
blocks, and the clock is read after the device has finished. Two bounds stand beside them:

- products: the time of the update's matrix products alone, replayed as a CUDA graph, so without launches;
- launches: the kernels started in one update, counted by torch.profiler, times what one start costs at least.
  The cheapest start is that of the smallest kernel, from Python one by one, or in a replayed graph.

The larger of the two is the limit, and its share in the time is printed. An eager E-step ends when it has
converged. In the other modes it evaluates its dual a fixed number of times, which starts more kernels.
"Published" is the authors' code at the sizes of row 1: 2.9 updates/s on one thread of a CPU
(docs/performance.md).

The loop is recipes/cvpo.py from the command line on 1024 copies of PointCircle, which live on the device as
everything else does. It gives frames per second, and the wall time to a stated reward within the limit.

Rows: 1. 300 states, 64 particles, 5 M-iterations, 256x256; 2. the recipe's defaults.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from learner import SIZES, processor, rows
from learner_gemm import GemmLimit, Sizes, flops
from learner_update import CVPOUpdate, cvpo

from safe_components.training import parse_config, read_metrics, with_run

logging.getLogger("torchrl").setLevel(logging.WARNING)  # it announces every buffer

PUBLISHED = 2.9
EXECUTIONS = ("eager", "compile", "graph")
# Three quarters of the 197 that open-loop optimization finds without cost: PointCircle's docstring.
GOOD_REWARD = 150.0
WARM_UP = 4  # updates before the first timed one: compiled and recorded ones take more than one call
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")
Update = Callable[[], object]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Update, number: int, device: torch.device) -> float:
    """Seconds of one call, averaged over ``number`` calls in a row, the device's work included."""
    wait(device)
    start = time.perf_counter()
    for _ in range(number):
        call()
    wait(device)
    return (time.perf_counter() - start) / number


def replayed(call: Update, device: torch.device) -> Update:
    """Record ``call`` as a CUDA graph; return its replay, or ``call`` itself on a CPU."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def launches(call: Update, device: torch.device) -> int:
    """Count the kernels and copies that ``call`` starts; on a CPU the operators that it calls."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        wait(device)
    starts = LAUNCHES if device.type == "cuda" else ("aten::",)
    return sum(event.count for event in profile.key_averages() if event.key.startswith(starts))


def update_launches(update: CVPOUpdate, device: torch.device) -> int:
    """Count what an update starts. The profiler can slow down what follows, so all times are taken before.

    A replayed graph's own kernels are misreported before CUDA 13.1. The same update is run operation by
    operation instead.
    """
    run = update.learner.update if update.config.execution.mode == "graph" else update.run
    return launches(lambda: run(*update.replay.sample()), device)


def launch_seconds(device: torch.device, number: int = 1000) -> dict[str, float]:
    """Measure what starting a kernel costs at least: from Python, and in a replayed graph."""
    one = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(number):
            one.neg_()

    graph = replayed(many, device)
    many()
    return {
        "one by one": statistics.median(seconds(many, 1, device) for _ in range(10)) / number,
        "in a graph": statistics.median(seconds(graph, 1, device) for _ in range(10)) / number,
    }


def measure(
    name: str, sizes: Sizes, settings: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure the updates/s of every execution mode, and their limits."""
    device = torch.device(options.device)
    updates = {}
    for mode in options.executions:
        how = {"run": {"device": options.device}, "execution": {"mode": mode}}
        updates[mode] = CVPOUpdate(sizes, settings, how, transitions=options.transitions)
        for _ in range(max(WARM_UP, options.updates)):
            updates[mode]()
    limit = GemmLimit(sizes, torch.get_num_threads(), device=device)
    products = replayed(limit.once, device)
    calls = {"products": products} | updates
    times: dict[str, list[float]] = {side: [] for side in calls}
    for block in range(options.blocks):
        # Every other block runs backwards, so that a drift of the machine falls on all sides alike.
        for side in sorted(calls, reverse=bool(block % 2)):
            times[side].append(seconds(calls[side], options.updates, device))
    cost = launch_seconds(device)
    alone = statistics.median(times.pop("products"))
    started = {mode: update_launches(update, device) for mode, update in updates.items()}
    result: dict[str, Any] = {
        "name": name,
        "flops": flops(limit.products),
        "products_seconds": alone,
        "launch_seconds": cost,
        "executions": {},
    }
    for mode, measured in times.items():
        spent = statistics.median(measured)
        bound = started[mode] * cost["in a graph" if mode == "graph" else "one by one"]
        result["executions"][mode] = {
            "seconds": spent,
            "updates_per_second": 1 / spent,
            "times_published": 1 / spent / PUBLISHED if sizes == Sizes() else None,
            "launches": started[mode],
            "launches_seconds": bound,
            "limit": "products" if alone > bound else "launches",
            "share_of_limit": max(alone, bound) / spent,
        }
    return result


def loop(options: argparse.Namespace) -> dict[str, Any]:
    """Train with the whole recipe on PointCircle; frames/s, and seconds to a good reward within the limit."""
    flags = [
        *("--env.id", "PointCircle", "--env.num-envs", str(options.copies), "--device", options.device),
        *("--execution.mode", options.loop_execution, "--total-frames", str(options.frames), "--loggers"),
        *("--no-progress", "--eval-interval", "0", "--checkpoint-interval", str(options.frames)),
        *options.flags.split(),
    ]
    config = parse_config(cvpo.Config, flags)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        cvpo.main(with_run(config, run_dir=run_dir))
        log = read_metrics(run_dir / "metrics.csv")
    good = (log["episode_reward"] >= GOOD_REWARD) & (log["episode_cost"] <= config.budget.cost_limit[0])
    return {
        "flags": " ".join(flags),
        "frames_per_second": float(log["frames"][-1] / log["wall_seconds"][-1]),
        "seconds": float(log["wall_seconds"][-1]),
        "seconds_to_good": float(log["wall_seconds"][good][0]) if good.any() else None,
        "last_reward": float(log["episode_reward"][-1]),
        "last_cost": float(log["episode_cost"][-1]),
    }


def show(result: dict[str, Any]) -> str:
    """Format a row's figures as Markdown."""
    cost = {how: 1e6 * value for how, value in result["launch_seconds"].items()}
    alone = result["products_seconds"]
    lines = [
        f"\n### {result['name']}\n",
        f"- products alone: {1e3 * alone:.3f} ms, {result['flops'] / alone / 1e9:,.0f} GFLOP/s",
        f"- a kernel's start: {cost['one by one']:.2f} µs one by one, {cost['in a graph']:.2f} µs in a graph",
        "",
        "| execution | updates/s | × published | GFLOP/s | kernels | starts, ms | limit | share of it |",
        "|---|" + "---:|" * 5 + "---|---:|",
    ]
    for execution, value in result["executions"].items():
        published, share = value["times_published"], value["share_of_limit"]
        lines.append(
            f"| {execution} | {value['updates_per_second']:.2f} | {f'{published:.1f}' if published else ''} "
            f"| {result['flops'] / value['seconds'] / 1e9:,.0f} | {value['launches']} "
            f"| {1e3 * value['launches_seconds']:.3f} | {value['limit']} | {100 * share:.0f} % |"
        )
    return "\n".join(lines)


def show_loop(result: dict[str, Any]) -> str:
    """Format the loop's figures as Markdown."""
    reached = result["seconds_to_good"]
    said = "not reached" if reached is None else f"after {reached:.1f} s"
    return (
        f"\n### The whole loop\n\n`python recipes/cvpo.py {result['flags']}`\n\n"
        f"- {result['frames_per_second']:,.0f} frames/s, {result['seconds']:.1f} s in all\n"
        f"- reward {GOOD_REWARD:g} within the limit: {said}; at the end {result['last_reward']:.1f} "
        f"at cost {result['last_cost']:.1f}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; exit with a message where a value is out of its range."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, standard = parser.add_argument, Sizes()
    add("--device", default="cuda", help="cuda, cuda:1; cpu only shows that the benchmark runs (cuda)")
    add("--executions", nargs="+", choices=EXECUTIONS, default=None, help="(all that the device has)")
    add("--rows", type=int, nargs="+", choices=(1, 2), default=[1, 2], help="rows to measure (1 2)")
    for name, text in SIZES.items():
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(standard, name), help=f"row 1: {text}")
    add(
        "--hidden-sizes",
        type=int,
        nargs="+",
        default=standard.hidden_sizes,
        help="row 1: of all networks (256 256)",
    )
    add("--blocks", type=int, default=20, help="turns of every side (20)")
    add("--updates", type=int, default=50, help="updates in a turn (50)")
    add("--transitions", type=int, default=100_000, help="transitions in the buffer (100000)")
    add("--no-loop", action="store_true", help="leave out the training run")
    add("--copies", type=int, default=1024, help="copies of PointCircle in the training run (1024)")
    add("--frames", type=int, default=4_000_000, help="frames of the training run (4000000)")
    add("--loop-execution", choices=EXECUTIONS, default=None, help="(graph; eager on a CPU)")
    add(
        "--flags",
        default="--collect.frames-per-batch 16384 --collect.updates-per-frame 0.002 --log-interval 100000 "
        "--replay.size 2000000 --replay.window 300000 --collect.warmup-frames 50000",
        help="further flags of the recipe in the training run",
    )
    add("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    for name in (*SIZES, "blocks", "updates", "copies", "frames"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if options.transitions < options.states:
        parser.error(f"--transitions {options.transitions} must be at least --states {options.states}")
    on_cuda = torch.device(options.device).type == "cuda"
    options.executions = options.executions or (EXECUTIONS if on_cuda else ("eager",))
    options.loop_execution = options.loop_execution or ("graph" if on_cuda else "eager")
    if not on_cuda and "graph" in (*options.executions, options.loop_execution):
        parser.error(f"a graph is for CUDA: leave it out with --device {options.device}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write where asked; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} finds no CUDA device here: nothing to measure", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    sizes = {name: getattr(options, name) for name in SIZES}
    equal, _, own, _ = rows(Sizes(hidden_sizes=tuple(options.hidden_sizes), **sizes))
    measured = {
        "command": " ".join(["python benchmarks/gpu.py", *arguments]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    print(", ".join(f"{name} {value}" for name, value in measured.items()))
    results: dict[str, Any] = {"measured": measured, "rows": []}
    for number, row in enumerate((equal, own), start=1):
        if number in options.rows:
            name = "published sizes" if row.ours == Sizes() else "defaults" if row is own else "given sizes"
            results["rows"].append(measure(f"{number}. {name}", row.ours, row.settings, options))
            print(show(results["rows"][-1]), flush=True)
    if not options.no_loop:
        results["loop"] = loop(options)
        print(show_loop(results["loop"]))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
