"""The loss of a two-stage DETR: each output matched with the objects, then class, L1 and GIoU (Deformable DETR)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from ..data.coco import Category, contiguous_labels, view_of
from ..data.sources import Batch
from ..data.transforms import cxcywh_to_xyxy, original_to_view, xywh_to_xyxy, xyxy_to_cxcywh
from ..detectors.base import LearningDetector
from ..detectors.hdetr import Decoded
from .assign import best_pairs, box_cost, focal_cost

WEIGHTS = {"class": 2.0, "l1": 5.0, "giou": 2.0}
"""Of the losses and of the matching costs, as in Deformable DETR."""

Objects = list[tuple[Tensor, Tensor]]
"""Per image: columns of the class logits "k" and boxes "k 4", cxcywh in 0-1."""


def detection_terms(batch: Batch, detector: LearningDetector, categories: Sequence[Category]) -> Tensor:
    """The loss of the detector on the objects of a batch: every decoder layer and the first stage, summed.

    H-DETR's one-to-many branch and DINO's denoising, which no weights file here has, are left out.
    """
    device = batch.features.boxes.device
    found = [view_objects(batch, row, categories) for row in range(len(batch))]
    objects = [(detector.columns(labels).to(device), boxes.to(device)) for labels, boxes in found]
    count = max(1, sum(len(boxes) for _, boxes in objects))
    losses = [output_loss(one, [objects[row] for row in rows], count) for rows, one in batch.decoded]
    return torch.stack(losses).sum()


def view_objects(batch: Batch, row: int, categories: Sequence[Category]) -> tuple[Tensor, Tensor]:
    """Labels "k" and boxes "k 4" (cxcywh in 0-1 of the view) of what an image shows, crowds and empty boxes left out.

    Boxes end where the view does, as in DETR's crops.
    """
    truth, view = batch.ground_truth[row], view_of(batch.infos[row], batch.views[row])
    boxes = original_to_view(xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh)), view.image_hw, view)
    corners = cxcywh_to_xyxy(boxes).clamp(0, 1)
    shown = (corners[:, 2:] > corners[:, :2]).all(dim=1) & ~torch.from_numpy(truth.iscrowd)
    return contiguous_labels(truth, categories)[shown], xyxy_to_cxcywh(corners[shown]).float()


def output_loss(output: Decoded, objects: Objects, count: int) -> Tensor:
    """The weighted loss of what the network computed, over `count` objects."""
    layers = [(logits, boxes, objects) for logits, boxes in zip(output.logits, output.boxes, strict=True)]
    if output.proposals_know_classes:
        layers.append((output.proposal_logits, output.proposal_boxes.sigmoid(), objects))
    else:
        anything = [(torch.zeros_like(columns), boxes) for columns, boxes in objects]
        layers.append((output.proposal_logits[..., :1], output.proposal_boxes.sigmoid(), anything))
    terms = [set_loss(*layer, count=count) for layer in layers]
    return torch.stack([term[name] * weight for term in terms for name, weight in WEIGHTS.items()]).sum()


def set_loss(
    logits: Tensor, boxes: Tensor, objects: Objects, repeats: int = 1, count: int | None = None
) -> dict[str, Tensor]:
    """Hungarian matching of queries with objects, each object `repeats` times, and the losses over the pairs.

    logits: "b q k". boxes: "b q 4", cxcywh in 0-1. Terms are per pair, or over `count`, for a part of a batch.
    """
    objects = [(columns.repeat(repeats), wanted.repeat(repeats, 1)) for columns, wanted in objects]
    pairs = [match(*image) for image in zip(logits.detach(), boxes.detach(), objects, strict=True)]
    return pair_terms(logits, boxes, objects, pairs, count or max(sum(map(len, pairs)), 1))


def pair_terms(
    logits: Tensor, boxes: Tensor, objects: Objects, pairs: Sequence[Tensor], count: float
) -> dict[str, Tensor]:
    """Focal loss of all queries, L1 and GIoU of those in a pair; sums over `count`, by name.

    logits: "b q k". boxes: "b q 4", cxcywh in 0-1. pairs: (query, object) of each image, int64 "m 2".
    """
    pairs = [own.to(boxes.device) for own in pairs]
    image = torch.cat([torch.full_like(own[:, 0], row) for row, own in enumerate(pairs)])
    query = torch.cat([own[:, 0] for own in pairs])
    columns = torch.cat([columns[own[:, 1]] for own, (columns, _) in zip(pairs, objects, strict=True)])
    wanted = torch.cat([boxes[own[:, 1]] for own, (_, boxes) in zip(pairs, objects, strict=True)])
    found = boxes[image, query]
    onehot = torch.zeros_like(logits)
    onehot[image, query, columns] = 1
    giou = generalized_box_iou_loss(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted), reduction="sum")
    return {
        "class": sigmoid_focal_loss(logits, onehot, reduction="sum") / count,
        "l1": (found - wanted).abs().sum() / count,
        "giou": giou / count,
    }


def match(logits: Tensor, boxes: Tensor, objects: tuple[Tensor, Tensor]) -> Tensor:
    """(query, object) pairs of one image's best assignment, by class, L1 and GIoU: int64 "min(q, k) 2"."""
    columns, wanted = objects
    cost = WEIGHTS["class"] * focal_cost(logits.sigmoid())[:, columns]
    return best_pairs(cost + box_cost(boxes, wanted, l1=WEIGHTS["l1"], giou=WEIGHTS["giou"]))
