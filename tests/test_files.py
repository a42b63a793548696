import json
from pathlib import Path

import pytest

from pipeline.files import JsonList, whole_file, write_json


def test_json_is_written_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2]}, indent=2)
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)

    def fail() -> None:
        with whole_file(tmp_path / "a.json") as stream:
            stream.write(b"half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="fire"):
        fail()
    assert (tmp_path / "a.json").read_text() == "1"


@pytest.mark.parametrize("items", [[], [1], [{"a": None}, [2]]])
def test_a_list_grows_on_the_disk(tmp_path: Path, items: list[object]) -> None:
    growing = JsonList(tmp_path / "a.json")
    for item in items:
        growing.add(item)
    assert growing.read() == growing.read() == items
    assert not (tmp_path / "a.json").exists()
    growing.keep()
    assert json.loads((tmp_path / "a.json").read_text()) == items
    other = JsonList(tmp_path / "a.json")
    other.add(1)
    other.discard()
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == items
