from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipeline.config import configs_dir, from_table, read_toml, shipped
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[int, int] = (1, 2)
    mode: Literal["a", "b"] = "a"
    maybe: int | None = None
    either: Literal["all"] | tuple[int, ...] = "all"
    flag: bool = False
    derived: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name is bad")


def test_tables_become_dataclasses() -> None:
    table = {"name": "x", "inner": {"size": 3, "rate": 1}, "many": [{"size": 1}], "pair": [3, 4], "either": [1, 2]}
    made = from_table(Outer, table, "f.toml")
    assert made == Outer("x", Inner(3, 1.0), (Inner(1),), (3, 4), either=(1, 2))
    assert isinstance(made.inner.rate, float)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"inner": {"sise": 3}}, "f.toml: inner: unknown key 'sise'", "did you mean 'size'?"),
        ({"zzz": 1}, "f.toml: unknown key 'zzz'", "known keys: name, inner"),
        ({"derived": 1}, "f.toml: unknown key 'derived'", ""),
        ({"inner": {}}, "f.toml: inner: the key 'size' is missing", ""),
        ({"inner": 3}, "f.toml: inner is 3, expected Inner", ""),
        ({"name": 3}, "f.toml: name is 3, expected str", ""),
        ({"flag": 1}, "f.toml: flag is 1, expected bool", ""),
        ({"inner": {"size": True}}, "f.toml: inner: size is True, expected int", ""),
        ({"pair": "x"}, "f.toml: pair is 'x', expected a list", 'in brackets: ["x"]'),
        ({"pair": [1]}, "f.toml: pair has 1 values, expected 2", ""),
        ({"many": [{"size": 1}, {"size": "a"}]}, r"f.toml: many\[1\]: size is 'a', expected int", ""),
        ({"mode": "c"}, "f.toml: mode is 'c'", "one of: a, b"),
        ({"maybe": "x"}, "f.toml: maybe is 'x', expected int", ""),
        ({"name": "bad"}, "f.toml: name is bad", ""),
    ],
)
def test_errors_name_file_and_key(change: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        from_table(Outer, {"name": "x", "inner": {"size": 3}, **change}, "f.toml")
    assert hint in caught.value.hint


def test_shipped_files_are_found_by_name() -> None:
    assert shipped("detectors")["deimv2-femto"] == configs_dir() / "detectors" / "deimv2-femto.toml"
    assert shipped("nothing") == {}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no config file .*none\.toml"):
        read_toml(tmp_path / "none.toml")
