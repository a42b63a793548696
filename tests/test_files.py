import json
from pathlib import Path

import pytest

from pipeline.files import whole_file, write_json


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
