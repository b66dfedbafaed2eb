"""Comparison of variants of the algorithms over seeds, in one table and one figure.

    python recipes/study.py --variants cvpo no-kl sac-lag --seeds 5 --env.id PointCircle
    python recipes/study.py --batched --variants cvpo cvpo:estep.epsilon=0.2 --env.id PointCircle
    python recipes/study.py --list                          # list the variants
    python recipes/study.py --report --run-dir runs/study-PointCircle

A variant has the form NAME[:PATH=VALUE[,PATH=VALUE...]], for example cvpo:estep.epsilon=0.2. The study trains
each variant with each seed, a few runs at a time. The same command continues an interrupted study. Options
that all recipes share apply to all variants, and their defaults are those of each recipe. docs/studies.md
defines every column.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from safe_components.studies import (
    LocalPool,
    Pool,
    RayPool,
    batches_of,
    check_limits,
    hold,
    merge,
    plan,
    record_study,
    run_batches,
    run_members,
    variant_table,
    write_results,
)
from safe_components.training import RecipeConfig, RunConfig, explained_errors, options, overlay, parse_config
from safe_components.training.command_line import given_settings
from safe_components.training.settings import read_sections


@dataclasses.dataclass(frozen=True)
class StudyConfig(RunConfig):
    """Settings of a study; ``seed`` is its first seed and ``run_dir`` is its directory."""

    variants: tuple[str, ...] = ()
    """variants to compare, each NAME[:PATH=VALUE[,PATH=VALUE...]]; --list shows the names; NAME may also be
    a recipe of your own, my_recipe.py or package.my_recipe, or package.module:name of variants of your own"""
    seeds: options.Repeats = 5
    """number of runs of each variant, with the seeds --seed, --seed + 1, ..."""
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="PATH=VALUE")] = ()
    """further settings of every variant; RECIPE.PATH=VALUE changes the variants of one recipe"""
    jobs: options.Repeats | None = None
    """number of runs at a time; None for one per core, or one per CPU of a cluster"""
    ray: str | None = None
    """"local" starts Ray on this machine; HOST:PORT uses a cluster with the same files; None turns Ray off"""
    ray_gpus: options.NotNegative = 0.0
    """share of a GPU that each run reserves on Ray"""
    batched: bool = False
    """train all runs in this process, with the updates of runs that differ only in numbers as one batch"""
    report: bool = False
    """only write the tables and the figure again, from the existing rows"""
    list_variants: Annotated[bool, tyro.conf.arg(name="list")] = False
    """print the variants and exit"""
    resume: tyro.conf.Suppress[Path | None] = None


@dataclasses.dataclass(frozen=True)
class Config(RecipeConfig):
    """Configuration of a study of several variants."""

    recipe: ClassVar[str] = "study"
    run: tyro.conf.OmitArgPrefixes[StudyConfig] = StudyConfig()


# Settings that the study decides for its members or uses itself, and so does not pass on.
_OWN = {"seed", "run_dir", "settings", "config", "resume", "progress", "traceback"}
_SHARED = {field.name for field in dataclasses.fields(RunConfig)} - _OWN


def shared_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings on a command line that all recipes share, as nested plain data."""
    given = given_settings(Config, arguments)
    given["run"] = {name: value for name, value in given["run"].items() if name in _SHARED}
    return given


def directory_of(config: Config, shared: Mapping[str, Any]) -> Path:
    """Return the directory of the study, which is by default named after the environment."""
    if config.run.run_dir is not None:
        return config.run.run_dir
    common = RecipeConfig()
    if config.run.settings is not None:
        path, sections = read_sections(config.run.settings)
        env = {key: value for key, value in sections.get("all", {}).items() if key.startswith("env")}
        common = overlay(common, env, str(path))
    return Path("runs") / f"study-{overlay(common, shared, 'the study').env.file_name}"


def make_pool(config: StudyConfig) -> Pool:
    """Make a pool of processes on this machine, or of tasks on Ray."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots = config.jobs or max(cores // config.threads, 1)
    if config.ray is None:
        return LocalPool(slots, config.threads)
    return RayPool(
        config.ray, slots if config.ray == "local" else config.jobs, config.threads, config.ray_gpus
    )


def main(config: Config, arguments: Sequence[str]) -> None:
    """Run a study.

    Args:
        config: configuration of the study.
        arguments: words of the command line, which tell the settings that were given.
    """
    study, shared = config.run, shared_settings(arguments)
    if study.list_variants:
        print(variant_table())
        return
    directory = directory_of(config, shared)
    if study.report:
        print(write_results(directory).read_text())
        return
    if not study.variants:
        raise ValueError("name the variants to compare, for example --variants cvpo no-kl; --list shows all")
    changes = {}
    for change in study.changes:
        path, equals, words = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change!r} must be PATH=VALUE")
        changes[path] = words
    members = plan(
        study.variants,
        range(study.seed, study.seed + study.seeds),
        directory,
        settings=study.settings,
        file=study.config,
        shared=shared,
        changes=changes,
    )
    check_limits(members)
    batches = batches_of(members) if study.batched else []
    if study.batched and (study.jobs or study.ray):
        raise ValueError("--batched trains all runs in this process: leave out --jobs and --ray")
    merge(directory, members)  # check before anything is started or written
    pool = make_pool(study)
    try:
        with hold(directory):
            record_study(directory, members, shlex.join(["python", "recipes/study.py", *arguments]))
            if study.batched:
                outcome = run_batches(batches, study.progress)
            else:
                outcome = run_members(members, pool, study.progress)
            print(write_results(directory).read_text())
    finally:
        pool.close()
    print(f"tables and figure: {directory}")
    again = "the same command continues the study and repeats no finished run"
    if outcome.stopped:
        print(f"{len(outcome.stopped)} of {len(members)} members have not finished; {again}")
        raise SystemExit(130)
    if outcome.failed:
        raise SystemExit(
            f"error: {len(outcome.failed)} of {len(members)} members failed (their errors are above, and "
            f"their full output is in output.log); fix the cause: {again}"
        )


def run(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run the study; end with one line for errors of the user."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = parse_config(Config, arguments, default=Config())  # the recipes read settings and files
    with explained_errors(config.run.traceback):
        main(config, arguments)


if __name__ == "__main__":
    run()
