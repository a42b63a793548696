import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from pipeline.masks import rle

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(deadline=None)
@given(masks, st.sampled_from(["C", "F"]), st.sampled_from([bool, np.uint8, np.int64]))
def test_any_order_and_type_gives_the_counts_of_pycocotools(mask: np.ndarray, order: str, kind: type) -> None:
    counts = rle.encode(np.array(mask, dtype=kind, order=order))
    assert counts == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert np.array_equal(rle.decode(counts, mask.shape), mask)
    assert rle.area(counts, mask.shape) == mask.sum()


@settings(deadline=None)
@given(array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(lambda s: st.tuples(arrays(bool, s), arrays(bool, s))))
def test_iou_and_intersection_are_those_of_the_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    counts = [rle.encode(mask) for mask in pair]
    both, either = (first & second).sum(), (first | second).sum()
    assert rle.iou(*counts, first.shape) == pytest.approx(both / either if either else 0)
    assert np.array_equal(rle.decode(rle.intersection(*counts, first.shape), first.shape), first & second)


def test_box_is_tight() -> None:
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:5, 7:11] = True
    assert rle.box_xywh(rle.encode(mask), (10, 12)) == [7, 2, 4, 3]


@pytest.mark.parametrize("segmentation", ["text", {"size": [4, 4]}, {"counts": [16]}, [[1.0]], 3])
def test_what_is_no_mask_is_a_value_error(segmentation: object) -> None:
    with pytest.raises(ValueError, match=r"neither polygons nor RLE|its size"):
        rle.from_segmentation(segmentation, (4, 4))
