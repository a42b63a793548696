"""Which numbers a field of a config may have: written in its type, told in docs/ and in the error about another.

steps: Annotated[int, Bounds(1)] = 88_500
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast


@dataclass(frozen=True)
class Bounds:
    """The finite numbers from `low` to `high`."""

    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is left out."""
    below: bool = False
    """Whether `high` itself is left out."""

    def __contains__(self, value: float) -> bool:
        """Whether a number is one of them; NaN and infinities never are."""
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and math.isfinite(value)

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"more than {self.low}" if self.above else f"{self.low} or more"
        return f"{'more than ' * self.above}{self.low} to {'below ' * self.below}{self.high}"


Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
"""Zero stands for none, or for a choice made elsewhere."""
Share = Annotated[float, Bounds(0, 1)]
Weight = Annotated[float, Bounds(0)]
"""Of a term of the loss, which 0 leaves out."""


def check_bounds(config: Any) -> None:
    """Raise ValueError naming the first field of a config dataclass whose number, or one of whose numbers, is not
    within the bounds of its type; for `__post_init__`, before anything is computed with them."""
    for name, bounds in _bounds(type(config)).items():
        value = getattr(config, name)
        numbers = cast("Sequence[float]", value) if isinstance(value, tuple) else (value,)
        if not all(number in bounds for number in numbers):
            each = "each " if isinstance(value, tuple) else ""
            shown = list(numbers) if isinstance(value, tuple) else value
            raise ValueError(f"{name} is {shown}, expected {each}{bounds}")


def bounds_of(hint: Any) -> Bounds | None:
    """The bounds in a type, None where it has none."""
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Bounds)), None)


@functools.cache
def _bounds(config: type[Any]) -> dict[str, Bounds]:
    hints = typing.get_type_hints(config, include_extras=True)
    found = {field.name: bounds_of(hints[field.name]) for field in dataclasses.fields(config)}
    return {name: bounds for name, bounds in found.items() if bounds is not None}
