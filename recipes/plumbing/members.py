"""The members of a study, one recipe run each: planned and checked before any of them starts."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbing.task import Task
from plumbing.variants import VARIANTS, Choice, choose
from safe_components.training import RunConfig, parse_config

__all__ = ["Member", "check_limits", "options_of", "plan"]

RECIPES = Path(__file__).parents[1]
Options = Mapping[str, Sequence[str]]

# What makes the variants of one study comparable, and what the study itself decides.
_OF_THE_STUDY = (
    "env.id",
    "env.max-episode-steps",
    "env.cost-keys",
    "cost-limit",
    "total-frames",
    "seed",
    "run-dir",
    "resume",
    "progress",
    "traceback",
)


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a study: a variant with a seed.

    Attributes:
        label: of the variant, as given.
        recipe: the script.
        config: what the recipe will read from ``flags``.
        flags: its command line but for the directory.
        directory: of the run.
    """

    label: str
    recipe: Path
    config: RunConfig
    flags: tuple[str, ...]
    directory: Path

    @property
    def name(self) -> str:
        """``variant/seed-K``."""
        return f"{self.label}/seed-{self.config.seed}"

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.directory / "output.log"


def options_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Command-line options of a configuration, ``env.num-envs`` and so on, and their values."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            options |= options_of(value, f"{name}.")
        else:
            options[name] = value
    return options


def _flags(options: Options, known: Mapping[str, Any], who: str) -> list[str]:
    """Options as a command line; a switch is written ``--x`` or ``--no-x``, as the recipes take it."""
    flags: list[str] = []
    for name, values in options.items():
        if isinstance(known[name], bool):
            said = " ".join(values).lower()
            if said not in ("true", "false"):
                raise ValueError(f"{who}: {name} is {said!r}, must be true or false")
            flags.append(f"--{name}" if said == "true" else f"--no-{name}")
        else:
            flags += [f"--{name}", *values]
    return flags


def _parse(config_type: type[RunConfig], flags: Sequence[str], who: str) -> RunConfig:
    """The recipe's own reading of a command line, its complaints as one line."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return parse_config(config_type, flags)
    except SystemExit as error:
        if isinstance(error.code, str):
            raise ValueError(f"{who}: {error.code.removeprefix('error: ')}") from None
        # tyro draws a box: its title, a rule, the message, another rule, hints.
        parts = re.split(r"[─-]{4,}", re.sub(r"[╭╮╰╯│]", " ", output.getvalue()))
        message = " ".join((parts[1] if len(parts) > 2 else output.getvalue()).split())
        raise ValueError(f"{who}: {message}") from None


def _require_known(names: Sequence[str], known: Mapping[str, Any], recipe: str, who: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            own = [option for option in known if option not in options_of(RunConfig())]
            raise ValueError(
                f"{who}: {recipe} has no option {name}"
                + (f" (did you mean {near[0]}?)" if near else "")
                + f"; it has: {', '.join(own)}"
            )


def _recipe_named(name: str) -> str | None:
    """The recipe in ``RECIPE.OPTION``."""
    recipe = name.partition(".")[0].replace("-", "_")
    return recipe if "." in name and recipe in {variant.recipe for variant in VARIANTS.values()} else None


def _extra_of(recipe: str, extra: Options) -> dict[str, Sequence[str]]:
    """The options of ``extra`` that are for ``recipe``; those that name it win."""
    named = {name: _recipe_named(name) for name in extra}
    for_all = {name: value for name, value in extra.items() if named[name] is None}
    own = {name.partition(".")[2]: value for name, value in extra.items() if named[name] == recipe}
    return {**for_all, **own}


def _options(choice: Choice, common: Options, config: RunConfig) -> dict[str, Sequence[str]]:
    """The study's options, then the variant's, then those given with its name; later ones win."""
    given = options_of(config)
    relative = {}
    for name, (of, factor) in choice.variant.relative.items():
        value = given[of]
        numbers = value if isinstance(value, tuple) else (value,)
        relative[name] = [f"{type(number)(number * factor):.17g}" for number in numbers]
    return {
        **common,
        **{name: value.split() for name, value in choice.variant.options.items()},
        **relative,
        **{name: value.split() for name, value in choice.overrides.items()},
    }


def plan(
    variants: Sequence[str], seeds: Sequence[int], common: Options, extra: Options, directory: Path
) -> list[Member]:
    """Every member of a study, its command line read by its recipe's own ``Config``.

    Args:
        variants: as :func:`plumbing.variants.choose` reads them.
        seeds: of each variant.
        common: options of `RunConfig` for all, by name, as words of the command line.
        extra: further options; ``OPTION`` is for all variants, and every chosen recipe must know it,
            ``RECIPE.OPTION`` for those of one recipe.
        directory: of the study.

    Returns:
        seed by seed, so that a study stopped early has compared all variants.

    Raises:
        ValueError: in one line, for a variant or an option that does not exist or has a bad value, and
            for variants that are the same.
    """
    choices = [choose(text) for text in variants]
    chosen = {choice.variant.recipe for choice in choices}
    for name in extra:
        recipe = _recipe_named(name)
        if recipe is not None and recipe not in chosen:
            raise ValueError(f"--set {name}: no variant of {recipe}.py is among {', '.join(variants)}")
    places: dict[str, str] = {}
    parsed = []
    for choice in choices:
        place = re.sub(r"[^\w.=+-]+", "_", choice.label)
        if place in places:
            raise ValueError(f"variants {places[place]} and {choice.label} are the same, or named alike")
        places[place] = choice.label
        config_type = importlib.import_module(choice.variant.recipe).Config
        known = options_of(config_type())
        who = f"variant {choice.label}"
        own = _extra_of(choice.variant.recipe, extra)
        _require_known(list(own), known, choice.variant.recipe, f"--set, {who}")
        _require_known(list(choice.overrides), known, choice.variant.recipe, who)
        for option in (*choice.overrides, *own):
            if option in _OF_THE_STUDY:
                raise ValueError(f"{who}: {option} is the same for the whole study: give --{option}")
        base = _parse(config_type, _flags({**common, **own}, known, who), who)
        # A run that is continued takes its settings from where it was, and needs the frames said.
        frames = {"total-frames": [str(base.total_frames)]}
        flags = _flags({**frames, **_options(choice, {**common, **own}, base)}, known, who)
        parsed.append((choice, place, _parse(config_type, flags, who), flags))
    members = []
    for seed in seeds:
        for choice, place, config, flags in parsed:
            members.append(
                Member(
                    choice.label,
                    RECIPES / f"{choice.variant.recipe}.py",
                    dataclasses.replace(config, seed=seed, progress=False),
                    (*flags, "--seed", str(seed), "--no-progress"),
                    directory.absolute() / place / f"seed-{seed}",
                )
            )
    return members


def check_limits(members: Sequence[Member]) -> None:
    """Make the environment once, and compare its costs with the limits.

    Raises:
        ValueError: if they are not as many.
        gymnasium.error.Error: if there is no such environment.
    """
    config = dataclasses.replace(members[0].config, eval_episodes=1)
    Task(config).evaluation_env().close()
