"""Which detections, or queries, learn which ground-truth mask."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from ..data.transforms import cxcywh_to_xyxy

Match = Literal["hungarian", "overlap"]


def hungarian(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    truth_boxes: Tensor,
    truth_labels: Tensor,
    *,
    cost_class: float,
    cost_bbox: float,
    cost_giou: float,
) -> Tensor:
    """One detection for each ground truth, by DETR's costs of class, L1 distance and GIoU, so weighted.

    boxes: "n 4" cxcywh in 0-1, with scores "n" and labels "n"; truth_boxes "k 4" in the same frame, truth_labels "k".
    The class cost is Deformable DETR's focal cost. A cached detection knows the score of its own label alone, so for
    another class its probability counts as zero.
    Returns (detection, truth) pairs, int64 "min(n, k) 2".
    """
    if not len(boxes) or not len(truth_boxes):
        return torch.zeros((0, 2), dtype=torch.int64)
    probs = torch.where(labels[:, None] == truth_labels[None], scores[:, None], 0.0)
    return best_pairs(cost_class * focal_cost(probs) + box_cost(boxes, truth_boxes, l1=cost_bbox, giou=cost_giou))


def best_pairs(cost: Tensor) -> Tensor:
    """The pairs of rows and columns, none in two of them, that cost least: int64 "min(n, k) 2", on the CPU.

    cost: "n k". What is no number is paired last; the loss will tell of it.
    """
    finite = cost.float().nan_to_num(nan=3e38, posinf=3e38, neginf=3e38)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    return torch.from_numpy(np.stack([rows, columns], axis=1))


def box_cost(boxes: Tensor, truth_boxes: Tensor, *, l1: float, giou: float) -> Tensor:
    """L1 distance and generalised IoU, so weighted. cxcywh, "n 4" and "k 4" -> "n k" """
    overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth_boxes))
    return l1 * torch.cdist(boxes, truth_boxes, p=1) - giou * overlap


def mask_cost(mask_logits: Tensor, masks: Tensor, *, bce: float, dice: float) -> Tensor:
    """Mask2Former's binary cross-entropy and dice, so weighted. "n p" and, in 0-1, "k p" at p points -> "n k" """
    probs = mask_logits.sigmoid()
    either = F.softplus(-mask_logits) @ masks.T + F.softplus(mask_logits) @ (1 - masks).T
    overlap = (2 * probs @ masks.T + 1) / (probs.sum(1)[:, None] + masks.sum(1) + 1)
    return bce * either / masks.shape[1] + dice * (1 - overlap)


def focal_cost(probs: Tensor, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-8) -> Tensor:
    """Focal loss of calling it this class minus that of not doing so (Deformable DETR's matcher), elementwise."""
    positive = alpha * (1 - probs) ** gamma * -(probs + eps).log()
    negative = (1 - alpha) * probs**gamma * -(1 - probs + eps).log()
    return positive - negative


def overlap(boxes: Tensor, truth_boxes: Tensor, min_iou: float) -> Tensor:
    """Every detection whose box has an IoU of at least `min_iou` with a ground truth, with the best one it has.

    Boxes cxcywh, "n 4" and "k 4". Classes do not count: a mask is to be right whatever the label.
    Returns (detection, truth) pairs, int64 "p 2", p from 0 to n.
    """
    if not len(boxes) or not len(truth_boxes):
        return torch.zeros((0, 2), dtype=torch.int64)
    best, truth = box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth_boxes)).max(dim=1)
    detections = torch.nonzero(best >= min_iou).flatten()
    return torch.stack([detections, truth[detections]], dim=1)


def sample_pairs(pairs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the pairs, drawn so that each ground truth is as likely as any other. "p 2" -> "q 2" """
    if len(pairs) <= count:
        return pairs
    detections_per_truth = torch.bincount(pairs[:, 1])[pairs[:, 1]]
    chosen = torch.multinomial(1.0 / detections_per_truth.float(), count, generator=generator)
    return pairs[chosen]


def jitter(boxes: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Each edge moved by up to `amount` of the box's side, cut to the image. cxcywh in 0-1, "n 4" -> "n 4".

    A head that saw each object in several frames relies less on where the box happens to end.
    """
    if amount == 0:
        return boxes
    corners = cxcywh_to_xyxy(boxes)
    moves = (torch.rand(corners.shape, generator=generator) * 2 - 1) * amount
    corners = (corners + moves * boxes[:, 2:].repeat(1, 2)).clamp(0, 1)
    low, high = corners[:, :2], corners[:, 2:]
    return torch.cat([(low + high) / 2, high - low], dim=1)
