"""Compare variants of the algorithms over seeds: one command, one table, one figure.

    python recipes/study.py --variants cvpo no-kl sac-lag --seeds 5 --env.id PointCircle
    python recipes/study.py --list                          # the variants there are
    python recipes/study.py --report --run-dir runs/study-PointCircle

A variant is NAME[:OPTION=VALUE[,OPTION=VALUE...]], for example cvpo:epsilon=0.2. Each is trained with each
seed, a few runs at a time. The same command again goes on where the last one stopped. Options shared by
all recipes hold for all variants; where they are not given, each recipe's own default does.
docs/studies.md defines every column.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from plumbing.members import check_limits, options_of, plan
from plumbing.pool import LocalPool, Pool, RayPool
from plumbing.results import write_results
from plumbing.scheduler import run_members
from plumbing.study_record import hold, merge, record_study
from plumbing.variants import variant_table
from safe_components.training import RunConfig, launch

# What the study decides for its members, and so does not hand on.
_OWN = ("seed", "run-dir", "resume", "progress", "traceback")


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """A study; ``seed`` is the first seed and ``run_dir`` the study's directory."""

    variants: tuple[str, ...] = ()
    """NAME[:OPTION=VALUE[,OPTION=VALUE...]], see --list"""
    seeds: int = 5
    """runs of each variant, with seeds --seed, --seed + 1, ..."""
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="OPTION=VALUE")] = ()
    """further options, for every variant; RECIPE.OPTION=VALUE for those of one recipe"""
    jobs: int | None = None
    """runs at a time; None for one per core, on a cluster one per CPU it has"""
    ray: str | None = None
    """"local" starts Ray on this machine; HOST:PORT uses a cluster that sees the same files"""
    ray_gpus: float = 0.0
    """share of a GPU each run reserves on Ray"""
    report: bool = False
    """only write table and figure again, from the rows that are there"""
    list_variants: Annotated[bool, tyro.conf.arg(name="list")] = False
    """print the variants and leave"""
    resume: tyro.conf.Suppress[Path | None] = None


def given_options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The shared options on a command line, as words; those not given stay each recipe's own."""
    shared = [name for name in options_of(RunConfig()) if name not in _OWN]
    given: dict[str, list[str]] = {}
    words: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument[2:].partition("=")
            flag, words = flag.replace("_", "-"), [value] if equals else []
            if flag in shared:
                given[flag] = words
        else:
            words.append(argument)
    return given


def make_pool(config: Config) -> Pool:
    """Processes of this machine, or Ray tasks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots = config.jobs or max(cores // config.threads, 1)
    if config.ray is None:
        return LocalPool(slots, config.threads)
    return RayPool(
        config.ray, slots if config.ray == "local" else config.jobs, config.threads, config.ray_gpus
    )


def main(config: Config, arguments: Sequence[str]) -> None:
    """Run the study."""
    if config.list_variants:
        print(variant_table())
        return
    directory = config.run_dir or Path("runs") / f"study-{config.env.file_name}"
    if config.report:
        print(write_results(directory).read_text())
        return
    if not config.variants:
        raise ValueError("name the variants to compare, for example --variants cvpo no-kl; --list shows all")
    for name, count in (("seeds", config.seeds), ("jobs", config.jobs)):
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}, must be at least 1")
    extra = {}
    for setting in config.changes:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} must be OPTION=VALUE")
        extra[name.removeprefix("--").replace("_", "-")] = value.split()
    seeds = range(config.seed, config.seed + config.seeds)
    members = plan(config.variants, seeds, given_options(arguments), extra, directory)
    check_limits(members)
    merge(directory, members)  # before anything is started or written
    pool = make_pool(config)
    try:
        with hold(directory):
            record_study(directory, members, shlex.join(["python", "recipes/study.py", *arguments]))
            outcome = run_members(members, pool, config.progress)
            print(write_results(directory).read_text())
    finally:
        pool.close()
    print(f"tables and figure: {directory}")
    again = "the same command goes on and repeats nothing that has finished"
    if outcome.stopped:
        print(f"{len(outcome.stopped)} of {len(members)} members have not finished; {again}")
        raise SystemExit(130)
    if outcome.failed:
        raise SystemExit(
            f"error: {len(outcome.failed)} of {len(members)} members failed (their last words are above, "
            f"the rest in their output.log); mend the cause: {again}"
        )


if __name__ == "__main__":
    launch(functools.partial(main, arguments=sys.argv[1:]), Config)
