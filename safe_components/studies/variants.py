"""The variants that a study can compare. Each variant is a recipe with some settings changed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from safe_components.training.config import flag_of

__all__ = ["VARIANTS", "Choice", "Variant", "choose", "variant_table"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A recipe with changed settings.

    Args:
        recipe: name of the recipe.
        description: description of the difference in one line.
        changes: changed settings by path, such as ``{"estep.solver": "adam"}``.
        relative: settings that are multiples of others, as ``{path: (path of the other, factor)}``.
    """

    recipe: str
    description: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    relative: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)


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


VARIANTS: Mapping[str, Variant] = {
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
}


def choose(text: str) -> Choice:
    """Parse ``NAME[:PATH=VALUE[,PATH=VALUE...]]``.

    Raises:
        ValueError: if the name is unknown (the message suggests the nearest), or if a path has no value.

    Example:
        >>> choose("cvpo:estep.epsilon=0.2").overrides
        {'estep.epsilon': '0.2'}
    """
    name, _, rest = text.partition(":")
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no variant {name!r}; {hint}--list shows all")
    overrides = {}
    for part in rest.split(",") if rest else ():
        path, equals, value = part.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"variant {text!r}: {part!r} must be PATH=VALUE")
        overrides[path.strip()] = value
    return Choice(text, VARIANTS[name], overrides)


def variant_table() -> str:
    """Return all variants as a Markdown table of names, recipes, command-line options and differences."""
    rows = ["| variant | recipe | options | what differs |", "|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        options = {path: str(value) for path, value in variant.changes.items()}
        options |= {
            path: f"{factor:g} × {_option(other)}" for path, (other, factor) in variant.relative.items()
        }
        code = " ".join(f"`--{_option(path)} {value}`" for path, value in options.items())
        rows.append(f"| `{name}` | `{variant.recipe}.py` | {code} | {variant.description} |")
    return "\n".join(rows)


def _option(path: str) -> str:
    return flag_of(path).replace("_", "-")
