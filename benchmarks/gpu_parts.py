"""CVPO's update on a GPU, part by part: which can be recorded, what each costs, and in which kernels.

    python benchmarks/gpu_parts.py --json parts.json --profile profile.txt   # on a CPU only: does it run?
    python benchmarks/gpu_parts.py --summary gpu-out                # the table that gpu_run.sh ends with

Every part is guarded: one that fails is reported with its first error, and the next one follows.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import json
import logging
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import torch
from learner import rows
from learner_gemm import Sizes

from safe_components.estep import NewtonDualSolver
from safe_components.mstep import _fused

GOOD_REWARD, LIMIT = 150.0, 25.0
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
TRANSITIONS = 20_000 if DEVICE.type == "cuda" else 2_000
Call = Callable[[], object]
results: dict[str, Any] = {}
# What needs the profiler: what runs after it may be slower, so all times are taken before.
counts_later: list[tuple[dict[str, Any], Call, Path | None]] = []


def say(text: str) -> None:
    print(text, flush=True)


def first_error(error: BaseException) -> str:
    """What went wrong first: the end of a recording raises once more, about the recording."""
    while error.__context__ is not None:
        error = error.__context__
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said[:160]} [{Path(where.filename).name}:{where.lineno}]"


def guarded(name: str, call: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    try:
        value = call()
    except Exception as error:  # any failure of a part is a finding; the next one follows
        value = {"error": first_error(error)}
        traceback.print_exc()
    results[name] = value
    say(f"{name}: {json.dumps(value, default=str)} ({time.perf_counter() - started:.1f} s)")
    return value


def milliseconds(call: Call, number: int = 20, blocks: int = 5) -> float:
    """Median over the blocks, of one call of ``number`` in a row, the device's work included."""
    times = []
    for _ in range(blocks):
        wait()
        start = time.perf_counter()
        for _ in range(number):
            call()
        wait()
        times.append(1e3 * (time.perf_counter() - start) / number)
    return statistics.median(times)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def recorded(call: Call, before: int = 2) -> Any:
    """``call`` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(before):
            call()
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        call()
    graph.replay()
    wait()
    return graph


def both_ways(call: Call, number: int = 20) -> dict[str, Any]:
    """Milliseconds eagerly and as a graph, and the kernels that it starts."""
    found: dict[str, Any] = {}
    for _ in range(2):
        call()
    found["eager_ms"] = milliseconds(call, max(number // 4, 1), 3)
    counts_later.append((found, call, None))
    if DEVICE.type == "cuda":
        try:
            found["graph_ms"] = milliseconds(recorded(call).replay, number)
        except Exception as error:  # recording raises whatever the operation that cannot be recorded does
            found["graph_ms"] = None
            found["error"] = first_error(error)
            traceback.print_exc()
            wait()
    return found


def rates() -> dict[str, float]:
    """GB/s of a copy, bytes read and written; TFLOP/s of products of random square matrices."""
    size = 2**30 if DEVICE.type == "cuda" else 2**24
    source = torch.randn(size, device=DEVICE)
    target = torch.empty_like(source)
    found = {"copy_GB_per_s": 8e-6 * size / milliseconds(lambda: target.copy_(source), 10)}
    kinds = [("float32", torch.float32, 8192, "highest"), ("tf32", torch.float32, 8192, "high")]
    kinds += [("bfloat16", torch.bfloat16, 8192, "highest"), ("float64", torch.float64, 4096, "highest")]
    before = torch.get_float32_matmul_precision()
    for name, dtype, size, precision in kinds:
        size = size if DEVICE.type == "cuda" else 256
        torch.set_float32_matmul_precision(precision)
        left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        call = lambda a=left, b=right, c=out: torch.mm(a, b, out=c)  # noqa: E731
        call()
        found[f"{name}_TFLOP_per_s"] = 2e-9 * size**3 / milliseconds(call, 5)
    torch.set_float32_matmul_precision(before)
    return {name: round(value, 1) for name, value in found.items()}


def estep(states: int, particles: int, costs: int, level: float) -> dict[str, Any]:
    """One problem on the device as on the CPU: to convergence, with 20 evaluations, and as a graph."""
    generator = torch.Generator().manual_seed(states + costs)
    q_reward = torch.randn(states, particles, generator=generator) + torch.randn(
        states, 1, generator=generator
    )
    q_cost = torch.rand(states, particles, costs, generator=generator)
    limits = torch.full((costs,), level, dtype=torch.float64)
    epsilon = torch.tensor(0.1, dtype=torch.float64)
    problem = (q_reward, q_cost, epsilon, limits)
    there = tuple(x.to(DEVICE) for x in problem)
    expected = NewtonDualSolver()(*problem)
    adaptive, fixed = NewtonDualSolver(), NewtonDualSolver(fixed_iterations=20)
    answers = {"eager": adaptive(*there), "fixed": fixed(*there)}
    found: dict[str, Any] = {"eager_ms": milliseconds(lambda: adaptive(*there), 5)}
    found["fixed_ms"] = milliseconds(lambda: fixed(*there), 5)
    if DEVICE.type == "cuda":
        kept: list[Any] = []
        graph = recorded(lambda: kept.append(fixed(*there)))
        found["graph_ms"] = milliseconds(graph.replay, 20)
        answers["graph"] = kept[-1]
    for way, answer in answers.items():
        found[f"{way}_weight_error"] = float((answer.weight.cpu() - expected.weight).abs().max())
        found[f"{way}_residual"] = float(answer.residual)
    return found


def mstep(states: int, actions: int) -> dict[str, Any]:
    """An iteration's terms and their gradient, as tensor operations and as a kernel; errors against float64.

    On a CPU the kernel is left out: Triton's interpreter would run it.
    """
    generator = torch.Generator().manual_seed(states + actions)

    def random(*shape: int) -> Any:
        return torch.randn(states, *shape, generator=generator, dtype=torch.float64)

    old_tril = 0.3 * random(actions, actions).tril(-1) + torch.diag_embed(random(actions).exp())
    action, weight = random(64, actions), torch.softmax(random(64), -1)
    tril = old_tril @ (torch.eye(actions, dtype=torch.float64) + 0.1 * random(actions, actions).tril())
    problem = (random(actions), old_tril, action, weight, random(actions), tril)
    ways = {"tensors": _fused.decoupled_terms}
    if DEVICE.type == "cuda":
        from safe_components.mstep import _fused_triton

        ways["kernel"] = _fused_triton.decoupled_terms

    def step_of(terms_of: Any, problem: Any) -> Callable[[], list[Any]]:
        *old, loc, tril = problem
        constants = _fused.OldPolicy.of(*old, _fused.combination(loc))
        variables = loc.clone().requires_grad_(), tril.clone().requires_grad_()
        weights = torch.arange(-2.0, 2.0, dtype=loc.dtype).to(loc.device)

        def step() -> list[Any]:
            terms = terms_of(constants, *variables)
            loss = torch.dot(torch.stack(terms[:4]), weights)
            return [loss.detach(), *(x.detach() for x in terms), *torch.autograd.grad(loss, variables)]

        return step

    expected = step_of(_fused.decoupled_terms, problem)()
    there = [x.float().to(DEVICE) for x in problem]
    found: dict[str, Any] = {}
    for way, terms_of in ways.items():
        step = step_of(terms_of, there)
        timed = both_ways(step)
        timed["error"] = max(
            float(((a.cpu().double() - b).abs() / (1.0 + b.abs())).max())
            for a, b in zip(step(), expected, strict=True)
        )
        found[way] = timed
    return found


def update_of(sizes: Any, settings: dict[str, Any], mode: str) -> Any:
    """An update of the recipe on random transitions, executed in this mode."""
    how = {"run": {"device": str(DEVICE)}, "execution": {"mode": mode}}
    return gpu.CVPOUpdate(sizes, settings, how, transitions=TRANSITIONS)


def parts(sizes: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The update's parts, each recorded alone; the solver makes its 20 evaluations without looking."""
    update = update_of(sizes, settings, "compile")  # as a graph needs it, and not compiled here
    own = update.learner
    critics, optim = own.critics, own.optim
    for group in [*critics.optim.param_groups, *optim.param_groups]:
        group["capturable"] = DEVICE.type == "cuda"
    optim._warned_capturable_if_run_uncaptured = critics.optim._warned_capturable_if_run_uncaptured = True
    transitions, batch = (x.copy() for x in update.replay.sample())

    def whole_m_step() -> None:
        particles = own.mstep.prepare(batch)
        for _ in range(own.iterations):
            out = own.mstep(particles)
            optim.zero_grad()
            (out["loss_policy"] + out["loss_trust_region"]).backward()
            optim.step()

    calls: dict[str, Call] = {
        "critics": lambda: critics.update(transitions.copy()),
        "particles": lambda: own.particles(batch),
        "E-step": lambda: own.estep(batch),
        "M-step": whole_m_step,
        "reference policy": own.reference.step,
        "samples": update.replay.sample,
    }
    found = {}
    for name, call in calls.items():
        if name == "samples":
            found[name] = {"eager_ms": milliseconds(call)}
            counts_later.append((found[name], call, None))
        else:
            found[name] = both_ways(call)
        say(f"  {name}: {found[name]}")
    return found


def graphed(sizes: Any, settings: dict[str, Any], profile: Path | None) -> dict[str, Any]:
    """An update as a graph: with samples, the call alone, the replay alone; where the host waits."""
    update = update_of(sizes, settings, "graph" if DEVICE.type == "cuda" else "eager")
    for _ in range(4):
        update()
    found: dict[str, Any] = {"update_ms": milliseconds(update)}
    found["waits"] = waits(update)
    if DEVICE.type != "cuda":
        return found
    transitions, states = update.replay.sample()
    found["call_ms"] = milliseconds(lambda: update.run(transitions, states))
    replay = update.run._run._graph.replay
    found["replay_ms"] = milliseconds(replay)
    found["memory_MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
    # Operation by operation, because a replay's own kernels are misreported before CUDA 13.1.
    eager = update.learner.update
    counts_later.append((found, lambda: eager(transitions.copy(), states.copy()), profile))
    return found


def count(found: dict[str, Any], call: Call, file: Path | None) -> None:
    """Kernels of a call and the time the device is busy with them; a table of them where a file is given."""
    if DEVICE.type != "cuda":
        found["kernels"] = gpu.launches(call, DEVICE)
        return
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as watched:
        call()
        wait()
    on_device = torch.autograd.DeviceType.CUDA
    own = [row for row in watched.key_averages() if row.device_type == on_device]
    found["kernels"] = sum(row.count for row in own)
    found["busy_ms"] = sum(row.self_device_time_total for row in own) / 1e3
    if file is None:
        return
    lines = [f"{'ms':>8} {'calls':>6} {'µs each':>8}  kernel (one update)"]
    for row in sorted(own, key=lambda row: -row.self_device_time_total):
        spent = row.self_device_time_total
        lines.append(f"{spent / 1e3:8.3f} {row.count:6d} {spent / row.count:8.2f}  {row.key[:150]}")
    file.write_text("\n".join(lines) + "\n")
    say("\n".join(lines[:13]))


def waits(call: Call) -> dict[str, int]:
    """Lines of Python in which the host waits for the device, and how often in a call."""
    if DEVICE.type != "cuda":
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = (w for w in caught if "called a synchronizing CUDA operation" in str(w.message))
    return dict(collections.Counter(f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in lines))


def small(states: int, particles: int) -> dict[str, float]:
    """µs of the E-step's sums over all particles, as they are and as an elementwise product and a sum."""
    x = torch.randn(2, 2, states, particles, device=DEVICE, dtype=torch.float64)
    weight = torch.rand(2, 1, states, particles, device=DEVICE, dtype=torch.float64)
    theta = torch.randn(2, 2, device=DEVICE, dtype=torch.float64)
    left, right = (torch.randn(2 * states, device=DEVICE) for _ in range(2))
    lower = torch.eye(6, device=DEVICE).expand(states, 6, 6) + 0.1 * torch.ones(6, 6, device=DEVICE).tril()
    eye = torch.eye(6, device=DEVICE).expand(states, 6, 6)
    calls: dict[str, Call] = {
        "second moments, bmm": lambda: (weight * x).flatten(-2) @ x.flatten(-2).mT,
        "second moments, sum": lambda: ((weight * x).unsqueeze(-3) * x.unsqueeze(-4)).sum((-2, -1)),
        "theta @ features, bmm": lambda: theta.unsqueeze(-2) @ x.flatten(-2),
        "theta @ features, sum": lambda: (theta[..., None, None] * x).sum(-3),
        "torch.dot": lambda: torch.dot(left, right),
        "product and sum": lambda: (left * right).sum(),
        "solve_triangular [B, 6, 6]": lambda: torch.linalg.solve_triangular(lower, eye, upper=False),
    }
    found = {}
    for name, call in calls.items():

        def many(call: Call = call) -> None:
            for _ in range(20):
                call()

        try:
            many()
            replay = recorded(many).replay if DEVICE.type == "cuda" else many
            found[name] = round(1e3 * milliseconds(replay, 5) / 20, 2)
        except Exception as error:  # libraries of CUDA may refuse to be recorded, in their own ways
            found[name] = first_error(error)
    return found


def measure(options: argparse.Namespace) -> None:
    """All of it, most telling first; the figures are written after each."""
    equal, _, defaults, _ = rows(Sizes())
    if DEVICE.type == "cuda":
        cases = {"row 1": (equal.ours, equal.settings), "row 2": (defaults.ours, defaults.settings)}
    else:
        tiny = Sizes(16, 4, 2, (16, 16), observation=6)
        cases = {"row 1": (tiny, equal.settings), "row 2": (tiny, defaults.settings)}
    six = {name: (dataclasses.replace(sizes, actions=6), how) for name, (sizes, how) in cases.items()}
    todo: dict[str, Callable[[], Any]] = {
        "rates": rates,
        "E-step 300x64, 1 cost": lambda: estep(300, 64, 1, 0.45),
        "E-step 256x16, 3 costs, cannot be met": lambda: estep(256, 16, 3, 0.2),
        "M-step's terms, 300 states, 2 actions": lambda: mstep(300, 2),
        "M-step's terms, 256 states, 6 actions": lambda: mstep(256, 6),
        "M-step's terms, 1000 states, 17 actions": lambda: mstep(1000, 17),
        "graph, row 1": lambda: graphed(*cases["row 1"], options.profile),
        "graph, row 2": lambda: graphed(*cases["row 2"], None),
        "parts, row 1": lambda: parts(*cases["row 1"]),
        "small 300x64": lambda: small(300, 64),
        "small 256x16": lambda: small(256, 16),
        "parts, row 2, 6 actions": lambda: parts(*six["row 2"]),
        "graph, row 2, 6 actions": lambda: graphed(*six["row 2"], None),
    }

    def write() -> None:
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1, default=str) + "\n")

    for name, call in todo.items():
        guarded(name, call)
        write()
    for found, call, file in counts_later:
        try:
            count(found, call, file)
        except Exception as error:  # the profiler, or the part that guarded() has seen fail
            found["kernels"] = first_error(error)
        write()


def summary(out: Path) -> str:
    """What a series of checks has found, in a screen."""
    lines = ["", "## Steps", "", "| step | exit | seconds |", "|---|---:|---:|"]
    log = (out / "log.txt").read_text(errors="replace") if (out / "log.txt").exists() else ""
    if (out / "steps.tsv").exists():
        steps = (out / "steps.tsv").read_text().splitlines()
        lines += ["| " + " | ".join(row) + " |" for row in csv.reader(steps, delimiter="\t")]
    last = [line for line in log.splitlines() if " passed" in line or line.startswith(("FAILED", "ERROR "))]
    lines += ["", "## Tests", "", *[line[:200] for line in last[-20:]]]
    lines += ["", "## Parts", ""]
    found = json.loads((out / "parts.json").read_text()) if (out / "parts.json").exists() else {}
    for name, value in found.items():
        if name.startswith("parts") and "error" not in value:
            lines += [f"{name}:"]
            for part, v in value.items():
                shown = ", ".join(
                    f"{k} {x:.3f}" if isinstance(x, float) else f"{k} {x}" for k, x in v.items()
                )
                lines += [f"  {part}: {shown}"]
        else:
            shown = ", ".join(
                f"{k} {x:.3g}" if isinstance(x, float) else f"{k} {x}" for k, x in value.items()
            )
            lines += [f"{name}: {shown}"]
    tables = [x for x in log.splitlines() if x.startswith(("### ", "| eager |", "| compile |", "| graph |"))]
    bounds = [x for x in log.splitlines() if x.startswith(("- products alone", "- a kernel's start"))]
    lines += ["", "## Updates (updates/s, × published, GFLOP/s, kernels, starts, limit, share)", ""]
    lines += [*dict.fromkeys(tables), *dict.fromkeys(bounds)]
    lines += ["", "## Training", ""]
    for path in sorted([*out.glob("loop*.csv"), *out.glob("simulator.csv")]):
        table = list(csv.DictReader(path.read_text().splitlines()))
        if not table:
            continue
        number = lambda row, key: float(row[key] or "nan")  # noqa: E731
        good = [
            row
            for row in table
            if number(row, "episode_reward") >= GOOD_REWARD and number(row, "episode_cost") <= LIMIT
        ]
        end = table[-1]
        speed = number(end, "frames") / number(end, "wall_seconds")
        lines += [
            f"{path.name}: {number(end, 'frames'):,.0f} frames, {number(end, 'updates'):,.0f} updates in "
            f"{number(end, 'wall_seconds'):.1f} s, {speed:,.0f} frames/s; at the end reward "
            f"{number(end, 'episode_reward'):.1f}, cost {number(end, 'episode_cost'):.1f}"
        ]
        for phase in ("collecting", "learning", "saving", "logging"):
            total = sum(number(row, f"seconds_{phase}") for row in table)
            lines[-1] += f"; {phase} {total:.1f} s"
        if path.stem.startswith("simulator"):
            continue
        lines += [
            f"  reward {GOOD_REWARD:g} within the limit: "
            + (
                f"after {number(good[0], 'wall_seconds'):.1f} s, {number(good[0], 'frames'):,.0f} frames, "
                f"{number(good[0], 'updates'):,.0f} updates"
                if good
                else "not reached"
            )
        ]
    return "\n".join(lines)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--json", type=Path, help="write the figures to this file")
parser.add_argument("--profile", type=Path, help="write the kernels of an update to this file")
parser.add_argument("--summary", type=Path, metavar="OUT", help="only the table of what lies there")

if __name__ == "__main__":
    options = parser.parse_args()
    if options.summary is not None:
        print(summary(options.summary))
        sys.exit(0)
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(capturable=True|prototype feature).*")
    torch.set_num_threads(1)
    measure(options)
