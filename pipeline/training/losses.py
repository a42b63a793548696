"""Losses of mask heads. Targets may be fractions: a point on an edge belongs half to the object."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy at points, mean over the points of each mask and over masks. "m p", "m p" -> scalar."""
    if not len(logits):
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, targets)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), mean over masks (Mask2Former). "m p", "m p" -> scalar."""
    if not len(logits):
        return logits.sum()
    probs = logits.sigmoid()
    overlap = 2 * (probs * targets).sum(1)
    return (1 - (overlap + 1) / (probs.sum(1) + targets.sum(1) + 1)).mean()


def mask_iou(mask_logits: Tensor, targets: Tensor, box_areas: Tensor, truth_areas: Tensor) -> Tensor:
    """IoU of the masks cut at 0 with the objects, also what lies outside the box. Target of mask scoring.

    mask_logits, targets: "m p" on an even grid over the box. box_areas, truth_areas: "m" in one unit. Returns "m".
    """
    predicted = (mask_logits > 0).float()
    cell = box_areas / mask_logits.shape[1]
    shared = (predicted * targets).sum(1) * cell
    union = predicted.sum(1) * cell + truth_areas - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-9), 0.0).clamp(0, 1)


def scoring_loss(iou: Tensor, target: Tensor, labels: Tensor, kind: Literal["l2", "l1"] = "l2") -> Tensor:
    """Squared or absolute error of the predicted IoU at these classes. "m classes", "m", "m" -> scalar."""
    if not len(iou):
        return iou.sum()
    return (F.mse_loss if kind == "l2" else F.l1_loss)(iou.gather(1, labels[:, None])[:, 0], target)
