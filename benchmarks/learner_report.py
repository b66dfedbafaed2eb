"""Figures and tables of the learner's benchmark, made from its raw times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median, quantiles
from textwrap import wrap
from typing import Any

from learner_gemm import Product, flops

# Seconds by phase of each update and of each pass of the products, and seconds of one of FSRL's updates.
Block = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles.

    Example:
        >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
        {'median': 3.0, 'q1': 2.0, 'q3': 4.0}
    """
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": median(values), "q1": low, "q3": high}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of the ratio of two sides, block by block."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def totals(blocks: Sequence[Block], side: str) -> list[float]:
    """Seconds of one update in each block: the median of its updates, all phases together."""
    return [median(sum(row.values()) for row in block[side]) for block in blocks]


def figures(products: Sequence[Product], blocks: Sequence[Block]) -> dict[str, Any]:
    """Compute the figures of the blocks for one number of threads."""
    updates, limits = totals(blocks, "ours"), totals(blocks, "products")
    rows = {side: [row for block in blocks for row in block[side]] for side in ("ours", "products")}
    result = {
        "seconds": spread(updates),
        "products_seconds": spread(limits),
        "share_of_limit": ratios(limits, updates),
        "flops_per_second": flops(products) / median(updates),
        "products_flops_per_second": flops(products) / median(limits),
        "peak_flops_per_second": median(block["peak"] for block in blocks),
        "phases": {
            phase: {
                "seconds": median(row[phase] for row in rows["ours"]),
                "products_seconds": median(row.get(phase, 0.0) for row in rows["products"]),
                "flops": flops(products, phase),
            }
            for phase in rows["ours"][0]
        },
    }
    if "fsrl" in blocks[0]:
        theirs = [block["fsrl"] for block in blocks]
        result |= {"fsrl_seconds": spread(theirs), "times_fsrl": ratios(theirs, updates)}
    return result


def summary(products: Sequence[Product], blocks: dict[int, list[Block]]) -> dict[int, dict[str, Any]]:
    """Compute `figures` for each number of threads, and the speed relative to one thread."""
    result = {threads: figures(products, measured) for threads, measured in blocks.items()}
    if 1 in blocks:
        alone = totals(blocks[1], "ours")
        for threads in result.keys() - {1}:
            result[threads]["times_one_thread"] = ratios(alone, totals(blocks[threads], "ours"))
    return result


def into_page(page: str, rows: Iterable[dict[str, Any]]) -> str:
    """Put the tables of ``rows`` between the page's ``<!-- figures -->`` and ``<!-- /figures -->``.

    Raises:
        ValueError: if the page has no such comments.

    Example:
        >>> into_page("no place", [])
        Traceback (most recent call last):
        ...
        ValueError: the page needs a line <!-- figures --> and, after it, a line <!-- /figures -->
    """
    before, start, rest = page.partition("<!-- figures -->\n")
    _, end, after = rest.partition("<!-- /figures -->\n")
    if not start or not end:
        raise ValueError("the page needs a line <!-- figures --> and, after it, a line <!-- /figures -->")
    return f"{before}{start}{chr(10).join(map(show, rows))}\n{end}{after}"


def describe(row: dict[str, Any]) -> list[str]:
    """Format the sizes of both sides and the state of the E-step as a table."""
    fsrl, metrics = row["fsrl"], row["metrics"]
    sides = [row["ours"]] + ([] if fsrl is None else [fsrl["sizes"]])
    cells = {
        name: [str(side[name.lower().replace("-", "_")]) for side in sides]
        for name in ("states", "particles", "M-iterations")
    }
    cells["layers"] = ["×".join(map(str, side["hidden_sizes"])) for side in sides]
    cells["critics, reward and cost"] = [
        f"{side['reward_critics']} and {side['cost_critics']}" for side in sides
    ]
    executed = [row["executed_flops"]] + ([] if fsrl is None else [fsrl["flops"]])
    cells["GFLOP executed"] = [f"{count / 1e9:.2f}" for count in executed]
    cells["GFLOP needed"] = [f"{row['flops'] / 1e9:.2f}", ""]
    cells["E-step's λ"] = [f"{metrics['lambda']:.3g}", ""]
    cells["E-step's KKT residual"] = [f"{metrics['estep_residual']:.1e}", ""]
    cells["feasible updates"] = [f"{100 * metrics['feasible']:.0f} %", ""]
    head = ["| | ours |", "|---|---:|"] if fsrl is None else ["| | ours | FSRL |", "|---|---:|---:|"]
    return head + [f"| {name} | " + " | ".join(values[: len(sides)]) + " |" for name, values in cells.items()]


def show(row: dict[str, Any]) -> str:
    """Format a row of the benchmark and its phases as Markdown."""
    measured = dict(row["measured"])
    command = f"    {measured.pop('command')}"
    facts = wrap(_facts(measured), 100, initial_indent="    # ", subsequent_indent="    # ")
    lines = [f"\n### {row['name']}\n", command, *facts, "", *describe(row), ""]
    lines += [
        "| threads | updates/s | GFLOP/s | products alone, GFLOP/s | share of that limit "
        "| peak, GFLOP/s | FSRL, updates/s | × FSRL | × one thread |",
        "|" + "---:|" * 9,
    ]
    for threads, value in row["threads"].items():
        theirs = f"{1 / value['fsrl_seconds']['median']:.2f}" if "fsrl_seconds" in value else ""
        lines.append(
            f"| {threads} | {1 / value['seconds']['median']:.2f} | {value['flops_per_second'] / 1e9:.0f} "
            f"| {value['products_flops_per_second'] / 1e9:.0f} | {_percent(value['share_of_limit'])} "
            f"| {value['peak_flops_per_second'] / 1e9:.0f} | {theirs} "
            f"| {_ratio(value.get('times_fsrl'))} | {_ratio(value.get('times_one_thread'))} |"
        )
    for threads, value in row["threads"].items():
        lines += ["", *_phases(threads, value["phases"])]
    return "\n".join(lines)


def _facts(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())


def _phases(threads: int, phases: dict[str, dict[str, float]]) -> list[str]:
    total = sum(phase["seconds"] for phase in phases.values())
    lines = [
        f"| phase, {threads} thread(s) | ms | share | its products alone, ms | GFLOP |",
        "|---|" + "---:|" * 4,
    ]
    for name, phase in phases.items():
        products = f"{1e3 * phase['products_seconds']:.2f} | {phase['flops'] / 1e9:.2f}"
        lines.append(
            f"| {name} | {1e3 * phase['seconds']:.2f} | {100 * phase['seconds'] / total:.1f} % "
            f"| {products if phase['flops'] else '|'} |"
        )
    return lines


def _ratio(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['median']:.2f} ({value['q1']:.2f}-{value['q3']:.2f})"


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['median']:.0f} % ({100 * value['q1']:.0f}-{100 * value['q3']:.0f})"
