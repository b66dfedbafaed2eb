"""The variants that a study can compare. Each variant is a recipe with some settings changed."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

from safe_components.ops import import_part
from safe_components.training.config import flag_of

__all__ = [
    "VARIANTS",
    "Choice",
    "Variant",
    "choose",
    "choose_all",
    "register_variant",
    "unregister_variant",
    "variant_table",
]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A recipe with changed settings.

    Args:
        recipe: name of the recipe, or the file or module of one of the user's own, as `recipe_file` takes it.
        description: description of the difference in one line.
        changes: changed settings by path, such as ``{"estep.solver": "adam"}``.
        relative: settings that are multiples of others, as ``{path: (path of the other, factor)}``.
    """

    recipe: str
    description: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    relative: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def recipe_name(self) -> str:
        """The name of the recipe without its folder or package.

        Example:
            >>> Variant("my/cvpo2.py", "").recipe_name, Variant("my.cvpo2", "").recipe_name
            ('cvpo2', 'cvpo2')
        """
        return PurePath(self.recipe.removesuffix(".py")).name.rpartition(".")[2]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A variant with the values that a study gives along with its name.

    Args:
        label: text in the form ``NAME[:PATH=VALUE,...]``.
        variant: variant of this NAME.
        overrides: values by path, as words of a command line.
    """

    label: str
    variant: Variant
    overrides: Mapping[str, str]


def _lagrangian(algorithm: str, recipe: str, changes: Mapping[str, Any] | None = None) -> dict[str, Variant]:
    name, changes = f"{algorithm.lower()}-lag", changes or {}
    ways = {
        "price": "a price in spreads, moved on its logarithm",
        "gradient": "a multiplier moved by gradient ascent",
        "pid": "a PID-controlled multiplier",
    }
    return {
        name + suffix: Variant(recipe, f"{algorithm} with {ways[way]}", {**changes, "multiplier": way})
        for suffix, way in (("", "price"), ("-gradient", "gradient"), ("-pid", "pid"))
    }


_VARIANTS: dict[str, Variant] = {
    "cvpo": Variant("cvpo", "CVPO with the recipe's defaults"),
    "no-kl": Variant("cvpo", "no trust region in the M-step", {"trust_region": "none"}),
    "soft-kl": Variant("cvpo", "fixed penalties in place of the trust region", {"trust_region": "soft"}),
    "retract": Variant(
        "cvpo", "trust region kept by shortening steps, without multipliers", {"trust_region": "retract"}
    ),
    "full": Variant("cvpo", "full covariance", {"policy.covariance": "full"}),
    "dual": Variant("cvpo", "λ as the exact solution of the E-step's dual", {"multiplier": "dual"}),
    "slsqp": Variant(
        "cvpo",
        "E-step's dual solved by SciPy's SLSQP",
        {"multiplier": "dual", "estep.solver": "slsqp"},
    ),
    "adam": Variant(
        "cvpo",
        "E-step's dual updated by one Adam step per batch",
        {"multiplier": "dual", "estep.solver": "adam"},
    ),
    "unconstrained": Variant("cvpo", "no cost limit: MPO", {"multiplier": "none"}),
    "lagrangian": Variant(
        "cvpo",
        "λ moved by gradient ascent on the episodes' cost",
        {"multiplier": "gradient"},
    ),
    "pid": Variant(
        "cvpo",
        "λ moved by PID control of the episodes' cost",
        {"multiplier": "pid"},
    ),
    "feedback": Variant(
        "cvpo",
        "E-step's limits tightened while episodes exceed the limits",
        {"multiplier": "dual", "budget.feedback": "pid"},
    ),
    "polyak": Variant(
        "cvpo", "reference policy is a Polyak average, moved at each update", {"reference": "polyak"}
    ),
    "online-critics": Variant(
        "cvpo",
        "particles scored by the online critics, not by the target critics",
        {"estep.critics": "online"},
    ),
    "cost-max": Variant(
        "cvpo",
        "maximum of two cost critics",
        {"critics.cost_aggregate": "max", "critics.cost_members": 2},
    ),
    "cost-conservative": Variant(
        "cvpo",
        "mean + 0.5 standard deviations of four cost critics",
        {"critics.cost_aggregate": "conservative", "critics.cost_members": 4},
    ),
    "recover": Variant(
        "cvpo",
        "cost alone lowered if the KL ball holds no safe distribution",
        {"multiplier": "dual", "multiplier.infeasible": "recover"},
    ),
    "few-particles": Variant("cvpo", "4 particles per state", {"estep.num_particles": 4}),
    "many-particles": Variant("cvpo", "64 particles per state", {"estep.num_particles": 64}),
    "limit-decay": Variant(
        "cvpo",
        "limit falls from 4 times its value over the first half of the frames",
        relative={
            "budget.start": ("budget.cost_limit", 4.0),
            "budget.decay_frames": ("run.total_frames", 0.5),
        },
    ),
    "discrete": Variant("discrete_cvpo", "CVPO over a grid of actions, with an exact E-step"),
    **_lagrangian("SAC", "sac_lag"),
    "cal": Variant(
        "sac_lag", "CAL: conservative cost critics, augmented Lagrangian", {"augmentation": "cal"}
    ),
    **_lagrangian("TD3", "td3_lag"),
    **_lagrangian("DDPG", "td3_lag", {"algorithm": "ddpg"}),
    **_lagrangian("PPO", "ppo_lag"),
    "focops": Variant(
        "ppo_lag", "FOCOPS: policy fitted to the best one near the old", {"algorithm": "focops"}
    ),
    "crpo": Variant(
        "ppo_lag",
        "CRPO: reward while the costs keep their limits, costs alone otherwise",
        {"multiplier": "crpo"},
    ),
    "saute": Variant(
        "ppo_lag",
        "Sauté: PPO without a price; the reward ends with the budget, which the policy sees",
        {"multiplier": "none", "env.saute": -1.0},
    ),
}


VARIANTS: Mapping[str, Variant] = MappingProxyType(_VARIANTS)
"""the registered variants by name"""


def register_variant(name: str, variant: Variant) -> None:
    """Add a variant to those that a study knows by name.

    Raises:
        ValueError: if the name is taken, or if it cannot stand on a command line.

    Example:
        >>> register_variant("wide-ball", Variant("cvpo", "a wide KL ball", {"estep.epsilon": 0.5}))
        >>> choose("wide-ball").variant.changes
        {'estep.epsilon': 0.5}
        >>> unregister_variant("wide-ball")
        >>> "wide-ball" in VARIANTS
        False
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"a variant cannot be named {name!r}: use letters, digits, - and _")
    if name in _VARIANTS:
        raise ValueError(f"there is a variant {name!r} already: choose another name, or unregister it first")
    _VARIANTS[name] = variant


def unregister_variant(name: str) -> None:
    """Remove a variant from those that a study knows by name.

    Raises:
        ValueError: if there is no such variant.
    """
    if name not in _VARIANTS:
        raise _no_variant(name)
    del _VARIANTS[name]


def _no_variant(name: str) -> ValueError:
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ValueError(f"there is no variant {name!r}; {hint}--list shows all")


def choose(text: str) -> Choice:
    """Parse ``NAME[:PATH=VALUE[,PATH=VALUE...]]``, which must stand for a single variant; see `choose_all`.

    Raises:
        ValueError: under the conditions of `choose_all`, or if the text stands for several variants.
    """
    choices = choose_all(text)
    if len(choices) != 1:
        raise ValueError(f"{text} stands for {len(choices)} variants, but a single one is needed")
    return choices[0]


def choose_all(text: str) -> list[Choice]:
    """Parse ``NAME[:PATH=VALUE[,PATH=VALUE...]]``.

    NAME is a registered variant, a recipe of the user's own with its defaults (``my_recipe.py`` or
    ``package.my_recipe``), or the import path ``package.module:name`` of a `Variant` or of a dictionary of
    variants by name. The dictionary stands for all its variants.

    Raises:
        ValueError: if the name is unknown (the message suggests the nearest), if the import path names
            something else, or if a path has no value.
        ImportError: if importing a module raises an error.

    Example:
        >>> choose_all("cvpo:estep.epsilon=0.2")[0].overrides
        {'estep.epsilon': '0.2'}
        >>> choose_all("my_cvpo.py:estep.epsilon=0.2")[0].variant.recipe
        'my_cvpo.py'
    """
    name, _, settings = text.partition(":")
    part, _, further = settings.partition(":")
    named: Mapping[str, Any]
    if name in VARIANTS:
        named = {text: VARIANTS[name]}
    elif part and "=" not in part:
        settings, found = further, import_part(f"{name}:{part}", f"variant {text}")
        named = found if isinstance(found, Mapping) else {text: found}
        if not named or not all(isinstance(variant, Variant) for variant in named.values()):
            raise ValueError(
                f"variant {text}: {name}:{part} is a {type(found).__name__}, must be a Variant or a "
                "dictionary of variants by name"
            )
    elif "." in name:
        named = {text: Variant(name, "a recipe of one's own")}
    else:
        raise _no_variant(name)
    overrides = {}
    for setting in settings.split(",") if settings else ():
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"variant {text!r}: {setting!r} must be PATH=VALUE")
        overrides[path.strip()] = value
    return [Choice(label, variant, overrides) for label, variant in named.items()]


def variant_table() -> str:
    """Return all variants as a Markdown table of names, recipes, command-line options and differences."""
    rows = ["| variant | recipe | options | what differs |", "|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        options = {path: str(value) for path, value in variant.changes.items()}
        options |= {
            path: f"{factor:g} × {_option(other)}" for path, (other, factor) in variant.relative.items()
        }
        code = " ".join(f"`--{_option(path)} {value}`" for path, value in options.items())
        rows.append(f"| `{name}` | `{variant.recipe_name}.py` | {code} | {variant.description} |")
    return "\n".join(rows)


def _option(path: str) -> str:
    return flag_of(path).replace("_", "-")
