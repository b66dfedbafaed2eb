"""Write the tables of ``docs/options.md``: every option of the recipes with its default, from their source.

    python docs/scripts/defaults.py

A second table lists the parts of the library whose default differs from the recipe's. A test compares the
page with what this script writes.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from columns import DOCS

from safe_components.critics import CriticLearner
from safe_components.envs import make_env
from safe_components.estep import EStepProjector, NewtonDualSolver, ParticleSampler
from safe_components.lagrangian import (
    CostBudget,
    CRPOSwitch,
    DeterministicLagLoss,
    ExponentiatedMultiplier,
    FOCOPSLoss,
    GradientMultiplier,
    PIDMultiplier,
    SACLagLoss,
)
from safe_components.mstep import mstep_loss
from safe_components.policies import deterministic_policy, gaussian_policy
from safe_components.training.config import choices_of, fields, flag_of, name_of
from safe_components.training.recipes import load_recipe, recipe_file

PAGE = DOCS / "options.md"
RECIPES = ("cvpo", "discrete_cvpo", "sac_lag", "td3_lag", "ppo_lag")
Row = tuple[str, str, str, str]  # option, choice that has it, default, meaning

# The options of a group, and the part of the library that the group makes: options by the part's own names.
PARTS: list[tuple[str, str, Callable[..., Any], dict[str, str]]] = [
    ("cvpo", "env", make_env, {}),
    ("cvpo", "policy gaussian", gaussian_policy, {}),
    ("cvpo", "policy tanh", gaussian_policy, {}),
    ("td3_lag", "policy", deterministic_policy, {}),
    ("cvpo", "critics", CriticLearner, {}),
    ("cvpo", "estep", ParticleSampler, {}),
    ("cvpo", "mstep", mstep_loss, {}),
    ("cvpo", "multiplier dual", NewtonDualSolver, {"max": "lam_max"}),
    ("cvpo", "multiplier dual", EStepProjector, {}),
    ("cvpo", "multiplier price", ExponentiatedMultiplier, {"min": "min_value", "max": "max_value"}),
    ("cvpo", "multiplier gradient", GradientMultiplier, {"max": "max_value"}),
    ("cvpo", "multiplier pid", PIDMultiplier, {"max": "max_value"}),
    ("cvpo", "budget", CostBudget, {}),
    ("sac_lag", "policy", SACLagLoss, {}),
    ("td3_lag", "policy", DeterministicLagLoss, {}),
    ("ppo_lag", "algorithm focops", FOCOPSLoss, {}),
    ("ppo_lag", "multiplier crpo", CRPOSwitch, {}),
]


@functools.cache
def meanings(group: type) -> dict[str, str]:
    """Return the text below each field in the source of a dataclass, and of its base classes."""
    found: dict[str, str] = {}
    for kind in filter(dataclasses.is_dataclass, reversed(group.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        lines = body.body  # type: ignore[attr-defined]  # a class
        for field, text in itertools.pairwise(lines):
            if isinstance(field, ast.AnnAssign):
                said = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                said_there = str(text.value.value) if said else ""  # type: ignore[attr-defined]  # an ast.Expr
                found[ast.unparse(field.target)] = " ".join(said_there.replace("``", "`").split())
    return found


def words(value: Any) -> str:
    """Return a default as one writes it on the command line."""
    if value is None:
        return "None"
    if value == ():
        return "empty"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " ".join(map(words, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def options(group: Any, prefix: str = "", choice: str = "") -> Iterator[Row]:
    """Yield the options of a group, and of the alternatives of its exclusive choices."""
    for name, hint, value in fields(group):
        if "." in name:  # of a group below, which follows with its own choice
            continue
        path = f"{prefix}{name}"
        flag = "--" + flag_of(path).replace("_", "-")
        if choices := choices_of(hint):
            names = ", ".join(f"`{each}`" for each in choices if each != "own")
            kind = (type(value).__doc__ or "").split("\n")[0] if value is not None else ""
            yield flag, choice, name_of(choices, value), f"{names}. {kind}".strip()
            for kind_name, alternative in choices.items():
                if alternative is not None:
                    chosen = value if type(value) is alternative else alternative()
                    yield from options(chosen, f"{path}.", kind_name)
        elif dataclasses.is_dataclass(value):
            yield from options(value, f"{path}.", choice)
        else:
            yield flag, choice, words(value), meanings(type(group)).get(name, "")


def merged(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Return the cells of the rows, with one row for an option that several choices share."""
    choices: dict[tuple[str, str, str], list[str]] = {}
    for flag, choice, default, meaning in rows:
        choices.setdefault((flag, default, meaning), []).extend([choice] if choice else [])
    return [
        (f"`{flag}`" + (f" ({', '.join(names)})" if names else ""), default, meaning)
        for (flag, default, meaning), names in choices.items()
    ]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown, in which ``<name>`` is no tag."""
    lines = [head, ("---",) * len(head), *rows]
    cells = [[re.sub(r"([|<])", r"\\\1", cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def differing() -> list[tuple[str, ...]]:
    """Return the defaults of the library that differ from those of the recipe that makes the part."""
    rows = []
    for recipe, where, part, renamed in PARTS:
        path, _, choice = where.partition(" ")
        config = load_recipe(recipe_file(recipe)).Config()
        hint = next(hint for name, hint, _ in fields(config) if name == path)
        group = choices_of(hint)[choice]() if choice else getattr(config, path)
        call = part.__init__ if inspect.isclass(part) else part
        parameters = inspect.signature(call).parameters
        for field in dataclasses.fields(group):
            parameter = parameters.get(renamed.get(field.name, field.name))
            value = getattr(group, field.name)
            if parameter is None or parameter.default in (parameter.empty, value, value or None):
                continue
            flag = "--" + flag_of(f"{path}.{field.name}").replace("_", "-")
            option = f"`{flag}`" + (f" ({choice})" if choice else "")
            name = f"`{part.__name__}({parameter.name})`"
            rows.append((option, recipe, words(value), name, words(parameter.default)))
    return rows


def tables() -> str:
    """Return everything below the page's mark."""
    found = {name: list(options(load_recipe(recipe_file(name)).Config())) for name in RECIPES}
    head = ("option", "default", "meaning")
    parts = ["## CVPO", table(head, merged(found["cvpo"]))]
    known = {(flag, *said) for flag, _, *said in found["cvpo"]}
    for name in RECIPES[1:]:
        own = [row for row in found[name] if (row[0], *row[2:]) not in known]
        parts += [f"## What differs in {name}.py", table(head, merged(own))]
    columns = ("option", "recipe", "its default", "part of the library", "its default")
    parts += [
        "## Where the library has other defaults",
        "A part that you call yourself has the defaults of its signature. These differ from the recipe's, "
        "because a\nrecipe tunes them together, and a part stands alone:",
        table(columns, differing()),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the tables into the page."""
    text = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(r"(<!-- tables -->\n\n).*", lambda mark: mark[1] + tables(), text, flags=re.S))


if __name__ == "__main__":
    main()
