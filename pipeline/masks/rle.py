"""COCO run-length masks: column-major compressed counts, the one form in which masks are stored and compared."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Mask = NDArray[np.bool_]


def as_coco(counts: bytes, image_hw: tuple[int, int]) -> Any:
    """The object that pycocotools works on; its counts are bytes, JSON wants them decoded."""
    return {"size": [int(side) for side in image_hw], "counts": counts}


def encode(mask: NDArray[Any]) -> bytes:
    """Bool or 0/1 mask [h, w], in any memory order and type -> compressed counts."""
    rle: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle["counts"]


def decode(counts: bytes, image_hw: tuple[int, int]) -> Mask:
    """Compressed counts -> mask [h, w]."""
    return coco_mask.decode(as_coco(counts, image_hw)).astype(bool)


def area(counts: bytes, image_hw: tuple[int, int]) -> float:
    """Pixels in the mask."""
    return float(coco_mask.area(as_coco(counts, image_hw)))


def box_xywh(counts: bytes, image_hw: tuple[int, int]) -> list[float]:
    """The tightest box around the mask, pixels; zeros for an empty one."""
    return coco_mask.toBbox(as_coco(counts, image_hw)).tolist()


def from_segmentation(segmentation: Any, image_hw: tuple[int, int]) -> bytes:
    """A COCO `segmentation` (polygons, either kind of RLE) -> counts, rasterised as pycocotools' annToRLE does.

    Raises ValueError saying what is wrong with it.
    """
    try:
        if isinstance(segmentation, list):
            rle: Any = coco_mask.merge(coco_mask.frPyObjects(segmentation, *image_hw))
            return rle["counts"]
        if tuple(segmentation["size"]) != tuple(image_hw):
            raise ValueError(f"its size is {segmentation['size']}, the image is {list(image_hw)}")
        if isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, *image_hw)
            return rle["counts"]
        return segmentation["counts"].encode()
    except ValueError:
        raise
    except Exception as error:  # pycocotools raises plain Exception
        raise ValueError(f"neither polygons nor RLE ({error})") from None


def intersection(first: bytes, second: bytes, image_hw: tuple[int, int]) -> bytes:
    """Pixels in both masks."""
    both: Any = coco_mask.merge([as_coco(first, image_hw), as_coco(second, image_hw)], intersect=True)
    return both["counts"]


def iou(first: bytes, second: bytes, image_hw: tuple[int, int]) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    union = area(first, image_hw) + area(second, image_hw)
    common = area(intersection(first, second, image_hw), image_hw)
    return common / (union - common) if union else 0.0
