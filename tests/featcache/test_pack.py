"""Small maps are made ready by one thread, and whoever calls has as many as before afterwards."""

from collections.abc import Iterator

import pytest
import torch

from featcache.pack import SMALL_MAP, one_thread_if_small


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_one_thread_for_small_maps_only(threads: int) -> None:
    small, large = torch.empty(4, 8, 8), torch.empty(1).expand(SMALL_MAP, 1, 1)
    for maps, expected in (([small], 1), ([small, large], threads), ([small.to("meta")], threads)):
        with one_thread_if_small(maps):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == threads


def test_an_error_leaves_the_threads_as_they_were(threads: int) -> None:
    with pytest.raises(ValueError, match="bad"), one_thread_if_small([torch.empty(1, 1, 1)]):
        raise ValueError("bad")
    assert torch.get_num_threads() == threads
