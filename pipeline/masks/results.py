"""Detections and masks of one image in COCO's result format, boxes in pixels of the original image."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..data.transforms import xyxy_to_xywh
from . import rle

Result = dict[str, Any]
"""image_id, category_id, score, bbox (xywh) and, for masks, segmentation; plain values that JSON takes."""


def box_results(
    image_id: int, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, category_ids: Sequence[int]
) -> list[Result]:
    """One result per box. boxes_xyxy: "n 4"; scores and labels: "n"; category_ids: the COCO id of each label."""
    rows = zip(xyxy_to_xywh(boxes_xyxy).tolist(), scores.tolist(), labels.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, "bbox": box}
        for box, score, label in rows
    ]


def mask_results(
    boxes: Sequence[Result], scores: Tensor, counts: Sequence[bytes], image_hw: tuple[int, int]
) -> list[Result]:
    """The results of the boxes with their masks (compressed counts) and the masks' own scores "n"."""
    return [
        {**box, "score": score, "segmentation": {**rle.as_coco(mask, image_hw), "counts": mask.decode()}}
        for box, score, mask in zip(boxes, scores.tolist(), counts, strict=True)
    ]
