"""The tables of settings in docs/ are those of the code, and every config that a person can write has one."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pipeline.data.transforms import Transform
from pipeline.detectors.native import NativeConfig
from pipeline.detectors.onnx import OnnxConfig, Outputs, Tap
from pipeline.heads.registry import FAMILIES
from pipeline.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
FOR_PEOPLE = [
    Transform,
    NativeConfig,
    OnnxConfig,
    Outputs,
    Tap,
    TrainConfig,
    *(config for config, _ in FAMILIES.values()),
]


@dataclass(frozen=True)
class Sample:
    """One field of each sort."""

    name: str
    """Over two
    lines."""
    kind: Literal["a", "b"] = "a"
    sides: tuple[Literal["left", "right"], ...] = ("left",)
    """Which | where."""
    on: bool = True
    file: str | None = None
    """May be left out."""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    sys.modules.pop("field_tables", None)


def test_a_table_has_every_field() -> None:
    from field_tables import field_table

    assert field_table(Sample).splitlines()[2:] == [
        "| `name` | required | Over two lines. |",
        '| `kind` | `"a"` | `a`, `b`. |',
        '| `sides` | `["left"]` | Any of `left`, `right`. Which \\| where. |',
        "| `on` | `true` |  |",
        "| `file` | none | May be left out. |",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_those_of_the_code(page: Path) -> None:
    from field_tables import fill

    assert page.read_text() == fill(page.read_text()), f"docs/{page.name} is stale: make docs"


def test_every_config_has_its_table_and_no_field_is_without_words() -> None:
    from field_tables import docstrings, find, tables_in

    shown = {find(name) for page in PAGES for name in tables_in(page.read_text())}
    for config in FOR_PEOPLE:
        assert config in shown, f"no table of {config.__name__} in docs/: <!-- fields of ... -->, then make docs"
        silent = set(config.__dataclass_fields__) - docstrings(config).keys() - {"kind"}
        assert not silent, f"{config.__name__} says nothing of {silent}"
