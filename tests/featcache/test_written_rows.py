"""Parts of a file are written where they belong, neighbours together, and what lies between stays."""

import os
from pathlib import Path
from unittest import mock

from featcache.files import write_at


def test_parts_lie_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    assert write_at(path, {4: b"bb", 2: b"aa", 9: b"d"}, 12)
    assert path.read_bytes() == b"\0\0aabb\0\0\0d\0\0"
    assert not write_at(path, {7: b"c"}, 12)
    assert path.read_bytes() == b"\0\0aabb\0c\0d\0\0"


def test_neighbours_are_one_call(tmp_path: Path) -> None:
    with mock.patch("os.pwrite", wraps=os.pwrite) as pwrite:
        write_at(tmp_path / "rows", {6: b"cc", 0: b"aa", 2: b"bb", 4: b""}, 8)
    assert [(bytes(call.args[1]), call.args[2]) for call in pwrite.call_args_list] == [(b"aabb", 0), (b"cc", 6)]


def test_a_call_that_writes_a_part_is_continued(tmp_path: Path) -> None:
    real = os.pwrite
    with mock.patch("os.pwrite", side_effect=lambda file, data, offset: real(file, data[:3], offset)):
        write_at(tmp_path / "rows", {1: b"abcdefgh"}, 10)
    assert (tmp_path / "rows").read_bytes() == b"\0abcdefgh\0"
