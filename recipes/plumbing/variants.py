"""The variants a study can compare: each a recipe and the options that make the difference."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

__all__ = ["VARIANTS", "Choice", "Variant", "choose", "variant_table"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A recipe with options.

    Args:
        recipe: module in ``recipes/``.
        description: in one line, what differs.
        options: option names and values, as on the recipe's command line; spaces part several values.
        relative: options set to a multiple of a common one, as ``{option: (common option, factor)}``.
    """

    recipe: str
    description: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    relative: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A variant as a study names it: ``label`` is ``NAME[:OPTION=VALUE,...]``, ``overrides`` the options."""

    label: str
    variant: Variant
    overrides: Mapping[str, str]


def _lagrangian(recipe: str, name: str) -> dict[str, Variant]:
    return {
        f"{name}-lag": Variant(
            f"{name}_lag",
            f"{recipe} with a multiplier moved by gradient ascent",
            {"multiplier": "gradient"},
        ),
        f"{name}-lag-pid": Variant(
            f"{name}_lag", f"{recipe} with a PID-controlled multiplier", {"multiplier": "pid"}
        ),
    }


VARIANTS: Mapping[str, Variant] = {
    "cvpo": Variant("cvpo", "CVPO with the recipe's defaults"),
    "no-kl": Variant("cvpo", "no trust region in the M-step", {"trust-region": "none"}),
    "soft-kl": Variant("cvpo", "fixed penalties in place of the trust region", {"trust-region": "soft"}),
    "retract": Variant(
        "cvpo", "trust region by shortening steps, no multipliers", {"trust-region": "retract"}
    ),
    "diagonal": Variant("cvpo", "diagonal covariance", {"covariance": "diagonal"}),
    "slsqp": Variant("cvpo", "E-step's dual by SciPy's SLSQP", {"estep-solver": "slsqp"}),
    "adam": Variant("cvpo", "E-step's dual by one Adam step per batch", {"estep-solver": "adam"}),
    "unconstrained": Variant("cvpo", "no cost limit: MPO", {"multiplier": "none"}),
    "lagrangian": Variant(
        "cvpo",
        "λ moved by gradient ascent on the episodes' cost, not solved for",
        {"multiplier": "gradient"},
    ),
    "pid": Variant(
        "cvpo", "λ under PID control of the episodes' cost, not solved for", {"multiplier": "pid"}
    ),
    "feedback": Variant(
        "cvpo",
        "E-step's limits tightened while episodes cost more than they should",
        {"multiplier": "feedback"},
    ),
    "polyak": Variant(
        "cvpo", "reference policy that follows a little with each update", {"reference": "polyak"}
    ),
    "copy": Variant("cvpo", "reference policy copied after each batch of frames", {"reference": "copy"}),
    "online-critics": Variant(
        "cvpo", "particles scored by the critics, not their targets", {"estep-critics": "online"}
    ),
    "cost-max": Variant(
        "cvpo", "largest of two cost critics", {"cost-aggregate": "max", "cost-critics": "2"}
    ),
    "cost-conservative": Variant(
        "cvpo",
        "mean + 0.5 standard deviations of four cost critics",
        {"cost-aggregate": "conservative", "cost-critics": "4"},
    ),
    "recover": Variant(
        "cvpo", "no safe distribution in reach: lower the cost only", {"infeasible": "recover"}
    ),
    "clip": Variant("cvpo", "no safe distribution in reach: λ stays at its cap", {"infeasible": "clip"}),
    "few-particles": Variant("cvpo", "4 particles a state", {"num-particles": "4"}),
    "many-particles": Variant("cvpo", "64 particles a state", {"num-particles": "64"}),
    "limit-decay": Variant(
        "cvpo",
        "limit falls from 4 times its value over the first half of the frames",
        relative={"limit-start": ("cost-limit", 4.0), "limit-decay-frames": ("total-frames", 0.5)},
    ),
    **_lagrangian("SAC", "sac"),
    "cal": Variant("sac_lag", "CAL: conservative cost critics, augmented Lagrangian", {"cal": "true"}),
    **_lagrangian("TD3", "td3"),
    **_lagrangian("DDPG", "ddpg"),
    **_lagrangian("PPO", "ppo"),
}


def choose(text: str) -> Choice:
    """Read ``NAME[:OPTION=VALUE[,OPTION=VALUE...]]``.

    Raises:
        ValueError: for an unknown name, with the nearest, or an option without a value.
    """
    name, _, rest = text.partition(":")
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no variant {name!r}; {hint}--list shows all")
    overrides = {}
    for part in rest.split(",") if rest else ():
        option, equals, value = part.partition("=")
        if not equals or not option.strip():
            raise ValueError(f"variant {text!r}: {part!r} must be OPTION=VALUE")
        overrides[option.strip().removeprefix("--").replace("_", "-")] = value
    return Choice(text, VARIANTS[name], overrides)


def variant_table() -> str:
    """All variants as a Markdown table: name, recipe, options, what differs."""
    rows = ["| variant | recipe | options | what differs |", "|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        options = [f"--{option} {value}" for option, value in variant.options.items()]
        options += [
            f"--{option} {factor:g} × {common}" for option, (common, factor) in variant.relative.items()
        ]
        code = " ".join(f"`{option}`" for option in options)
        rows.append(f"| `{name}` | `{variant.recipe}.py` | {code} | {variant.description} |")
    return "\n".join(rows)
