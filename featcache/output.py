"""What commands print on stdout: JSON for programs, aligned tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, cast


def print_json(data: object) -> None:
    """One JSON document; dataclasses become objects."""
    print(json.dumps(data, indent=2, default=_plain))


def print_fields(fields: Mapping[str, object]) -> None:
    """One "name  value" line per field."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name:<{width}}  {value}")


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of equal keys under their names; numbers to the right."""
    if not rows:
        return
    columns = {name: [_cell(row[name]) for row in rows] for name in rows[0]}
    numeric = {name: all(isinstance(row[name], int | float) for row in rows) for name in columns}
    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    for line in zip(*([name, *cells] for name, cells in columns.items()), strict=True):
        parts = [
            f"{cell:>{widths[name]}}" if numeric[name] else f"{cell:<{widths[name]}}"
            for name, cell in zip(columns, line, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(_cell, cast("list[object]", value))) if isinstance(value, list) else str(value)


def _plain(value: Any) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
