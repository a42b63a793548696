"""The tables of settings in docs/: every field of a config dataclass with its default and its docstring.

python scripts/field_tables.py        `make docs` runs it, a test compares

A page asks for one by `<!-- fields of pipeline.training.config.TrainConfig -->`; what stands between that line and
`<!-- end of fields -->` is written here. The dataclass is the only home of what it says.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.bounds import bounds_of

PAGES = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(<!-- fields of (?P<name>[\w.]+) -->\n).*?(<!-- end of fields -->)", re.DOTALL)


def fill(page: str) -> str:
    """The page with every table as the code has it today."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{field_table(find(found['name']))}\n{found[3]}", page)


def tables_in(page: str) -> set[str]:
    """The dotted names of the dataclasses that a page has tables of."""
    return {found["name"] for found in BLOCK.finditer(page)}


def find(name: str) -> type[Any]:
    """The dataclass of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def field_table(config: type[Any]) -> str:
    """A Markdown table: field, default, choices and docstring."""
    told, hints = docstrings(config), typing.get_type_hints(config, include_extras=True)
    lines = ["| field | default | what |", "|---|---|---|"]
    for field in dataclasses.fields(config):
        words = [choices(hints[field.name]), told.get(field.name, "")]
        what = " ".join(word for word in words if word).replace("|", "\\|")
        lines.append(f"| `{field.name}` | {default(field)} | {what} |")
    return "\n".join(lines) + "\n"


def docstrings(config: type[Any]) -> dict[str, str]:
    """Field -> the string below it in the source, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for line, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(after, ast.Expr):
            text = ast.literal_eval(after.value)
            found[line.target.id] = " ".join(text.split())
    return found


def choices(hint: Any) -> str:
    """The values that a field may have, where they are few or within bounds."""
    if bounds := bounds_of(hint):
        return f"{bounds}.".capitalize()
    several = typing.get_origin(hint) is tuple
    named = _literals(typing.get_args(hint)[0] if several else hint)
    return f"{'Any of ' * several}{named}." if named else ""


def default(field: "dataclasses.Field[Any]") -> str:
    """As TOML writes it."""
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "none"
    return f"`{_toml(field.default)}`"


def _literals(hint: Any) -> str:
    values = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return ", ".join(f"`{value}`" for value in values)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, typing.cast('tuple[Any, ...]', value)))}]"
    return str(value)


def main() -> None:
    """Write every page that asks for a table."""
    for file in sorted(PAGES.glob("*.md")):
        page = file.read_text()
        if tables_in(page):
            file.write_text(fill(page))
            print(file)


if __name__ == "__main__":
    main()
