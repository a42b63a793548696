"""Choosing and ordering rows of a table: `boxes>10`, `categories~dog`, `-score`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from featcache.errors import UsageError

Row = Mapping[str, Any]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "~": lambda value, part: part in value,
}
_FORM = re.compile(r"\s*(\w+)\s*(>=|<=|!=|==|=|>|<|~)\s*(.*?)\s*", re.DOTALL)
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Filter:
    """One condition: a field, an operator of = != < <= > >= ~ (contains, upper and lower case alike), a word."""

    field: str
    operator: str
    word: str

    @classmethod
    def parse(cls, text: str) -> Filter:
        """From `FIELD OPERATOR VALUE`; raises UsageError."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise UsageError(
                f"'{text}' is no filter: it needs a field, one of = != < <= > >= ~, and a value",
                "such as --filter 'boxes>10' or --filter 'categories~dog', in quotes",
            )
        return cls(found[1], "=" if found[2] == "==" else found[2], found[3])

    def keep(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that fulfil it; those that have no value (null) never do. Raises UsageError."""
        if rows:
            _check_field(self.field, list(rows[0]))
        values: list[object] = [row[self.field] for row in rows]
        kind = next((type(value) for value in values if value is not None), None)
        if kind is None:  # nothing to compare with, nor to tell what can be compared
            return []
        compare, wanted = _OPERATORS[self.operator], self._wanted(kind)
        if kind in (str, list):
            texts = [[str(part).casefold() for part in _parts(value)] for value in values]
            positive = _OPERATORS["="] if self.operator == "!=" else compare  # not any, rather than any other
            hits = [any(positive(text, wanted) for text in parts) for parts in texts]
            kept = [hit != (self.operator == "!=") for hit in hits]
        else:
            kept = [value is not None and compare(value, wanted) for value in values]
        return [row for row, keep in zip(rows, kept, strict=True) if keep]

    def _wanted(self, kind: type | None) -> Any:
        """The word as a value of the field's kind."""
        if kind in (str, list):
            return self.word.casefold()
        if self.operator == "~":
            raise UsageError(f"'{self.field}' is no text, ~ cannot be asked of it", "use = != < <= > >=")
        if kind is bool and self.word.lower() in _TRUTH:
            return _TRUTH[self.word.lower()]
        try:
            return float(self.word)
        except ValueError as error:
            expected = "true or false" if kind is bool else "a number"
            raise UsageError(f"'{self.field}' is compared with '{self.word}', expected {expected}") from error


def chosen(
    rows: Sequence[Row],
    filters: Sequence[str] = (),
    *,
    fields: Sequence[str],
    sort: str | None = None,
    limit: int | None = None,
) -> list[Row]:
    """The rows that fulfil every filter, in the order of a field (`-FIELD`: greatest first), at most `limit` of them.

    Rows without a value in that field come last. `fields` are those of a row, if there is one. Raises UsageError for a
    field that is not there, naming those that are.
    """
    found = list(rows)
    conditions = [Filter.parse(text) for text in filters]
    for condition in conditions:
        _check_field(condition.field, fields)
    for condition in conditions:
        found = condition.keep(found)
    if sort is not None:
        name, down = sort.removeprefix("-"), sort.startswith("-")
        _check_field(name, fields)
        with_value = [row for row in found if row[name] is not None]
        without = [row for row in found if row[name] is None]
        found = sorted(with_value, key=lambda row: row[name], reverse=down) + without
    return found[:limit]


def _check_field(name: str, fields: Sequence[str]) -> None:
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0.4)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"there is no field '{name}'", f"{meant}fields: {', '.join(fields)}")


def _parts(value: object) -> list[object]:
    """A text as a list of one, a list as it is, no value as none."""
    if isinstance(value, list):
        return cast("list[object]", value)
    return [] if value is None else [value]
