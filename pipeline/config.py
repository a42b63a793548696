"""TOML files -> frozen dataclasses. An unknown key, a wrong type or a contradiction is an error naming file and key."""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import PipelineError, suggestion

C = TypeVar("C")


def configs_dir() -> Path:
    """The shipped TOML files: `pipeline/configs/` in a wheel, in a checkout a link to `configs/` at the root."""
    package = Path(__file__).parent  # where the file system has no links, the root itself is found
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise PipelineError(f"the configs folder is missing beside {package}", "install the package again")


def shipped(noun: str) -> dict[str, Path]:
    """Name -> TOML file of every shipped config of one noun (`detectors`, `heads`, `ablations`)."""
    return {file.stem: file for file in sorted((configs_dir() / noun).glob("*.toml"))}


def read_toml(file: Path) -> dict[str, Any]:
    """The table in `file`; a syntax error names the file and the line."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(
            f"no config file {file}", "give the path of a TOML file, or the name of a shipped one, without .toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{file} is not valid TOML: {error}") from None


def from_table(cls: type[C], table: Mapping[str, Any], where: str) -> C:
    """An instance of the dataclass `cls` from a TOML table; `where` (the file) opens every message."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    for key in table:
        if key not in fields:
            hint = suggestion(key, fields, f"known keys: {', '.join(fields)}")
            raise PipelineError(f"{where}: unknown key '{key}'", hint)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise PipelineError(f"{where}: the key '{name}' is missing")
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise PipelineError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or an error that says what was expected and found."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (origin is Mapping and isinstance(value, Mapping)):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_table(typing.cast(type, hint), value, where)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits([arg for arg in args if arg is not type(None)], value, where)
    if origin is typing.Literal:
        if value in args:
            return value
        raise PipelineError(f"{where} is {value!r}", f"one of: {', '.join(map(str, args))}")
    if origin is tuple and isinstance(value, list):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise PipelineError(f"{where} has {len(value)} values, expected {len(kinds)}")
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is tuple and not isinstance(value, tuple):
        raise PipelineError(
            f"{where} is {value!r}, expected a list", f"in brackets: [{json.dumps(value, default=str)}]"
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise PipelineError(f"{where} is {value!r}, expected {getattr(hint, '__name__', hint)}")


def _first_that_fits(hints: list[Any], value: Any, where: str) -> Any:
    for hint in hints[:-1]:
        try:
            return _value(hint, value, where)
        except PipelineError:
            continue
    return _value(hints[-1], value, where)
