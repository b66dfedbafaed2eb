"""Types of options that state which values are allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import tyro

from safe_components.ops import is_import_path

__all__ = [
    "Copies",
    "Count",
    "KeptShare",
    "LimitRange",
    "Limits",
    "NotNegative",
    "Positive",
    "PositiveShare",
    "Range",
    "Real",
    "Repeats",
    "Seed",
    "Share",
    "Sizes",
    "StepSize",
    "Steps",
    "Whole",
    "one_of_or_own",
]


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of allowed values, which stands in ``Annotated`` behind the type of an option.

    Attributes:
        words: words that complete "must be ..." in an error message.
        holds: function that tells whether a value is not too small; it is false for NaN.
        most: largest allowed value. A number above it is a slip, and would end in an overflow, an endless
            run or numbers that are not finite.
    """

    words: str
    holds: Callable[[Any], bool]
    most: float = math.inf

    def refusal(self, value: Any) -> str | None:
        """Return the words that complete "must be ..." for a value outside the range; None inside.

        Example:
            >>> Range("at least 1", lambda n: n >= 1, most=10**6).refusal(10**9)
            'at most 1,000,000'
        """
        if not self.holds(value):
            return self.words
        if not isinstance(value, tuple | str) and value > self.most:
            return f"at most {self.most:,}" if isinstance(self.most, int) else f"at most {self.most:g}"
        return None


def one_of_or_own(*names: str) -> Range:
    """Return the range of an option that chooses a part by its name, or one of the user's own by import path.

    Example:
        >>> one_of_or_own("newton", "adam").refusal("newtn")
        'one of newton, adam, or package.module:name of your own'
    """
    words = f"one of {', '.join(names)}, or package.module:name of your own"
    return Range(words, lambda text: text in names or is_import_path(text))


_HUGE = 1e12

Positive: TypeAlias = Annotated[float, Range("positive and finite", lambda x: 0.0 < x < math.inf, _HUGE)]
NotNegative: TypeAlias = Annotated[
    float, Range("finite and at least 0", lambda x: 0.0 <= x < math.inf, _HUGE)
]
StepSize: TypeAlias = Annotated[float, Range("positive and finite", lambda x: 0.0 < x < math.inf, 1.0)]
Real: TypeAlias = Annotated[
    float, Range("finite and at least -1e+12", lambda x: -_HUGE <= x < math.inf, _HUGE)
]
Share: TypeAlias = Annotated[float, Range("in [0, 1]", lambda x: 0.0 <= x <= 1.0)]
PositiveShare: TypeAlias = Annotated[float, Range("in (0, 1]", lambda x: 0.0 < x <= 1.0)]
KeptShare: TypeAlias = Annotated[float, Range("in [0, 1)", lambda x: 0.0 <= x < 1.0)]
Count: TypeAlias = Annotated[int, Range("at least 1", lambda n: n >= 1, 10**15)]
Whole: TypeAlias = Annotated[int, Range("at least 0", lambda n: n >= 0, 10**15)]
Copies: TypeAlias = Annotated[int, Range("at least 1", lambda n: n >= 1, 10**6)]
Steps: TypeAlias = Annotated[int, Range("at least 1", lambda n: n >= 1, 10**9)]
Repeats: TypeAlias = Annotated[int, Range("at least 1", lambda n: n >= 1, 10**4)]
# NumPy's and Gymnasium's generators take 32 bits.
Seed: TypeAlias = Annotated[int, Range("at least 0", lambda n: n >= 0, 2**32 - 1)]
Sizes: TypeAlias = Annotated[tuple[Copies, ...], Range("at least one width", lambda sizes: len(sizes) > 0)]


def _limits(words: list[str]) -> tuple[float, ...]:
    if not words:
        raise ValueError("name a limit for each cost, or none for no cost")
    if [word.lower() for word in words] == ["none"]:
        return ()
    try:
        return tuple(map(float, words))
    except ValueError:
        raise ValueError(f"{' '.join(words)} must be a number for each cost, or none") from None


Limits: TypeAlias = Annotated[
    tuple[NotNegative, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FLOAT [FLOAT ...]|none",
        instance_from_str=_limits,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda limits: [str(limit) for limit in limits] or ["none"],
    ),
]


def _is_range(ends: tuple[float, ...]) -> bool:
    return len(ends) == 2 and ends[0] < ends[1]


LimitRange: TypeAlias = Annotated[
    tuple[NotNegative, ...],
    Range("two limits, the smaller first", lambda ends: not ends or _is_range(ends)),
]
