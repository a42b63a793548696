"""Images are given out in whole files once a flush is worth it, and no file twice at a time."""

from unittest import mock

import pytest

from featcache import groups
from featcache.groups import Group, Groups

CHUNKS = {"c1": [b"x" * 60], "e16": [b"y" * 30, b"z" * 10]}
"""100 bytes of maps."""


def add(gathered: Groups, *indices: int, view: str = "orig") -> list[list[int]]:
    """The images of each group that is given out meanwhile."""
    given = [group for index in indices for group in gathered.add(view, index, CHUNKS, {"count": b"1"})]
    return images(given)


def images(given: list[Group]) -> list[list[int]]:
    return [sorted(group.rows) for group in given]


def test_files_wait_until_there_are_bytes_enough() -> None:
    gathered = Groups(shard=2, images=9, flush_bytes=400)
    assert add(gathered, 0, 1, 2) == []
    assert add(gathered, 3) == [[0, 1], [2, 3]]
    assert add(gathered, 8) == []  # the last file holds one image
    assert images(gathered.take()) == [[8]]
    assert gathered.take() == []


def test_every_file_is_given_out_at_once_where_one_is_enough() -> None:
    gathered = Groups(shard=1, images=9, flush_bytes=1)
    assert [add(gathered, index) for index in (4, 2, 4)] == [[[4]], [[2]], [[4]]]


def test_what_waits_long_is_given_out_with_the_next_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = mock.Mock(return_value=100.0)
    monkeypatch.setattr(groups.time, "monotonic", clock)
    gathered = Groups(shard=1, images=9, flush_bytes=1 << 30)
    assert add(gathered, 0) == []
    clock.return_value = 101.0
    assert add(gathered, 1) == []
    clock.return_value = 102.0
    assert add(gathered, 2) == [[0], [1], [2]]
    clock.return_value = 103.5  # since 2 were given out, not since the start
    assert add(gathered, 3) == []


def test_a_file_that_was_put_aside_is_not_begun_again() -> None:
    """Two groups of one file, written together, would lose the images of the first."""
    gathered = Groups(shard=3, images=99, flush_bytes=1 << 30)
    assert add(gathered, 0, 3, 6, 9, 12) == []  # five files begun: the first is put aside
    assert add(gathered, 1, 2) == []
    assert add(gathered, 0, view="hflip") == []  # a file of its own
    found = gathered.take()
    assert sorted(images(found)) == [[0], [0, 1, 2], [3], [6], [9], [12]]
    assert len({(group.view, group.number) for group in found}) == len(found)
