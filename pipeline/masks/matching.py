"""How well masks fit where the detection is right: a figure far less noisy than AP on few images."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from featcache import GroundTruth

from ..data.transforms import xywh_to_xyxy
from . import rle


def match_boxes(
    boxes_xyxy: Tensor, labels: Tensor, truth: GroundTruth, truth_labels: Tensor, *, threshold: float = 0.5
) -> list[tuple[int, int]]:
    """Pairs (detection, ground truth) of one class, one to one, box IoU at least `threshold`; crowds match nothing.

    As COCO's evaluation does it: detections choose in the order given, best score first, each the best free box.
    boxes_xyxy: "n 4" pixels of the original image; labels: "n"; truth_labels: "k".
    """
    if not len(truth) or not len(boxes_xyxy):
        return []
    fit = box_iou(boxes_xyxy.double(), xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh)))
    fit[labels[:, None] != truth_labels] = 0
    fit[:, torch.from_numpy(truth.iscrowd)] = 0
    pairs: list[tuple[int, int]] = []
    for row in range(len(fit)):
        value, best = fit[row].max(0)
        if value >= threshold:
            pairs.append((row, int(best)))
            fit[:, best] = 0
    return pairs


def in_box_iou(mask: bytes, truth: bytes, box: bytes, image_hw: tuple[int, int]) -> float:
    """IoU of a mask with the part of a ground-truth mask that lies in its box; all three as compressed counts."""
    return rle.iou(mask, rle.intersection(truth, box, image_hw), image_hw)
