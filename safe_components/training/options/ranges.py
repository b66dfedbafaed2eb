"""Types of options that state which values are allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

__all__ = ["Count", "Limits", "NotNegative", "Positive", "Range", "Share", "Sizes", "Whole"]


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of allowed values, which stands in ``Annotated`` behind the type of an option.

    Attributes:
        words: words that complete "must be ..." in an error message.
        holds: function that tells whether a value lies in the range; it is false for NaN.
    """

    words: str
    holds: Callable[[Any], bool]


Positive: TypeAlias = Annotated[float, Range("positive and finite", lambda x: 0.0 < x < math.inf)]
NotNegative: TypeAlias = Annotated[float, Range("finite and at least 0", lambda x: 0.0 <= x < math.inf)]
Share: TypeAlias = Annotated[float, Range("in [0, 1]", lambda x: 0.0 <= x <= 1.0)]
Count: TypeAlias = Annotated[int, Range("at least 1", lambda n: n >= 1)]
Whole: TypeAlias = Annotated[int, Range("at least 0", lambda n: n >= 0)]
Sizes: TypeAlias = Annotated[
    tuple[int, ...], Range("at least one width of at least 1", lambda sizes: min(sizes, default=0) >= 1)
]
Limits: TypeAlias = tuple[NotNegative, ...]
