from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_coco

from featcache import ImageInfo
from pipeline.data.coco import CocoSet, load_coco, read_image
from pipeline.data.decode import decode_ahead, plan_batches
from pipeline.data.transforms import Transform


def coco_of(sizes: list[tuple[int, int]]) -> CocoSet:
    infos = tuple(ImageInfo(i, h, w, f"{i}.png") for i, (h, w) in enumerate(sizes))
    return CocoSet(infos, (), (), "", None)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([(40, 60), (60, 40), (50, 50), (80, 120)]), max_size=60),
    st.integers(1, 5),
    st.sampled_from([Transform("square", 8), Transform("shortest", 10, 20)]),
)
def test_every_image_is_in_one_batch_of_one_size(sizes: list[tuple[int, int]], size: int, transform: Transform) -> None:
    batches = plan_batches(coco_of(sizes), range(len(sizes)), transform, size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({transform.network_hw(sizes[index]) for index in batch}) == 1


def test_one_network_size_keeps_the_order() -> None:
    assert plan_batches(coco_of([(9, 9)] * 5), [4, 0, 2], Transform("square", 8), 2) == [[4, 0], [2]]


@pytest.mark.parametrize("view", ["orig", "hflip"])
def test_batches_come_in_order_with_the_same_pixels(tmp_path: Path, view: str) -> None:
    coco, transform = load_coco(write_coco(tmp_path), tmp_path / "images"), Transform("square", 16)
    plan = [[0, 1, 2], [3], [4, 5], [6, 7]]
    batches = list(decode_ahead(coco, plan, transform, view))
    assert [batch.indices for batch in batches] == plan
    for batch in batches:
        expected = torch.stack([transform(read_image(coco, index), view) for index in batch.indices])
        assert torch.equal(batch.images, expected)
        assert not batch.errors


def test_unreadable_images_are_reported_beside_the_good_ones(tmp_path: Path) -> None:
    coco = load_coco(write_coco(tmp_path), tmp_path / "images")
    coco.path(1).write_bytes(b"broken")
    coco.path(3).unlink()
    first, second = decode_ahead(coco, [[0, 1, 2], [3]], Transform("square", 16), "orig")
    assert first.indices == [0, 2]
    assert len(first.images) == 2
    assert list(first.errors) == [1]
    assert second.indices == []
    assert "no such file" in second.errors[3].message
