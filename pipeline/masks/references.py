"""Masks without learning, floor and ceiling of a table: the box filled, and the best mask the box could hold."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from featcache import GroundTruth

from ..data.transforms import xywh_to_xyxy
from . import rle
from .paste import encode


def box_logits(boxes: Tensor) -> Tensor:
    """Every pixel of every box is object. boxes: "n 4". Returns "n 1 1"."""
    return boxes.new_ones(len(boxes), 1, 1)


def oracle_logits(
    boxes: Tensor,
    labels: Tensor,
    truth: GroundTruth,
    truth_labels: Tensor,
    image_hw: tuple[int, int],
    *,
    side: int = 32,
) -> Tensor:
    """For each box the ground-truth mask of its class whose box fits best, clipped to it; empty where there is none.

    boxes: "n 4" xyxy in pixels of the original image; labels: "n"; truth_labels: "k", on the CPU. Returns
    "n side side" on the device of the boxes.
    """
    logits = -boxes.new_ones(len(boxes), side, side, dtype=torch.float32)
    if not len(truth):
        return logits
    masks = [rle.decode(counts, image_hw) for counts in truth.rles]
    fit = box_iou(boxes.cpu(), xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh)))
    fit[labels.cpu()[:, None] != truth_labels] = 0
    fit[:, torch.from_numpy(truth.iscrowd)] = 0
    for row, (value, best) in enumerate(zip(*(column.tolist() for column in fit.max(1)), strict=True)):
        if value > 0:
            logits[row] = encode(masks[best], boxes[row].tolist(), side)
    return logits
