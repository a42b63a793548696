"""An ablation: rows of heads that differ in a few settings, from one TOML (the paper's tables: configs/ablations/)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import from_table, read_toml, shipped
from ..errors import PipelineError, UsageError, suggestion
from .recipe import Recipe, change, load_recipe

CELLS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "params", "gflops", "gpu_hours", "fps")
"""What a published row may say: mask AP and its parts in percent, added parameters in 10^6, multiply-adds in 10^9 per
image, hours of one V100, images per second."""


@dataclass(frozen=True)
class Row:
    """One head of an ablation and what was published about it."""

    name: str
    recipe: Recipe
    """Base head, settings of the whole table, settings of the row; named as the row."""
    detector: str
    """Whose features the published figures hold for."""
    paper: Mapping[str, float]
    """The published cells, by the names in `CELLS`; empty where there are none."""


@dataclass(frozen=True)
class Ablation:
    """One table: its rows can share a cache if they name one detector."""

    name: str
    about: str
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The published columns that any row has, in the order of `CELLS`."""
        return tuple(cell for cell in CELLS if any(cell in row.paper for row in self.rows))


@dataclass(frozen=True)
class _RowToml:
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    head: str = ""
    """In place of the table's base head."""
    detector: str = ""
    """In place of the table's."""
    paper: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class _Toml:
    about: str
    detector: str
    """Whose widths the published figures hold for; nothing else is tied to it."""
    head: str
    """The head that the rows change: a shipped name, or a TOML beside this one or from the working directory."""
    rows: tuple[_RowToml, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For all rows: fields of the base head or of its training. A row with another head takes those that it has too."""


def load_ablation(name_or_file: str) -> Ablation:
    """A shipped ablation, or the TOML at a path. Every row is checked: a bad one is an error naming file and row."""
    named = shipped("ablations")
    if name_or_file not in named and not name_or_file.endswith(".toml"):
        hint = suggestion(name_or_file, named, f"known: {', '.join(named)}, or a TOML file")
        raise UsageError(f"no ablation '{name_or_file}'", hint)
    file = named.get(name_or_file, Path(name_or_file))
    toml = from_table(_Toml, read_toml(file), str(file))
    if not toml.rows:
        raise PipelineError(f"{file} has no rows", "give each head a [[rows]] table")
    names = [row.name for row in toml.rows]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PipelineError(f"{file}: two rows are named '{twice}'", "give each row a name of its own")
    return Ablation(name=file.stem, about=toml.about, rows=tuple(_row(row, toml, file) for row in toml.rows))


def _row(row: _RowToml, toml: _Toml, file: Path) -> Row:
    where = f"{file}: row '{row.name}'"
    for cell, value in row.paper.items():
        if cell not in CELLS or isinstance(value, bool) or not isinstance(value, int | float):
            numbers = f"numbers for: {', '.join(CELLS)}"
            hint = numbers if cell in CELLS else suggestion(cell, CELLS, numbers)
            raise PipelineError(f"{where}: paper: {cell} = {value!r} is no published cell", hint)
    base = load_recipe(_beside(row.head or toml.head, file))
    common = toml.settings if not row.head else _known(toml.settings, base, load_recipe(_beside(toml.head, file)))
    recipe = change(base, {**common, **row.settings}, where)
    return Row(
        name=row.name,
        recipe=replace(recipe, name=row.name),
        detector=row.detector or toml.detector,
        paper={cell: float(value) for cell, value in row.paper.items()},
    )


def _known(settings: Mapping[str, Any], base: Recipe, common_base: Recipe) -> dict[str, Any]:
    """The settings of the table without those of its head that the row's own head does not have."""
    foreign = asdict(common_base.head).keys() - asdict(base.head).keys()
    return {key: value for key, value in settings.items() if key not in foreign}


def _beside(head: str, file: Path) -> str:
    """A head's TOML is looked for beside the ablation's first."""
    return str(file.parent / head) if (file.parent / head).is_file() else head
