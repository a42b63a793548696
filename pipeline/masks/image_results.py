"""What one image adds to an evaluation: results in COCO's format, and how well each matched mask fits in its box."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.coco import Category, contiguous_labels, view_of
from ..data.sources import Batch
from ..data.transforms import view_to_original
from ..data.views import View
from ..heads.base import Masks
from .matching import in_box_iou, match_boxes
from .paste import paste, paste_and_judge
from .references import box_logits
from .results import Result, box_results, mask_results


@dataclass(frozen=True)
class ImageResults:
    """Everything that is kept of an image."""

    boxes: list[Result]
    """What the frozen detector detects, with its own scores and `bbox`."""
    masks: list[Result]
    """What the head says, with the masks' own scores and `segmentation`: the same detections in the same order, but for
    families that tell themselves which objects there are."""
    own_boxes: list[Result] | None
    """The boxes of `masks`, with the same scores, where they are the head's own."""
    ious: list[float]
    """Mask IoU of each matched result of the head with its object, inside the box."""
    objects: int
    """In the ground truth, crowds apart."""

    def quality(self, image_id: int) -> dict[str, Any]:
        """How well this image came out, to be sorted by."""
        mean = round(sum(self.ious) / self.objects, 4) if self.objects else None
        return {"image_id": image_id, "objects": self.objects, "matched": len(self.ious), "mask_iou": mean}


def image_results(batch: Batch, masks: Masks, categories: Sequence[Category]) -> ImageResults:
    """Results of a batch of one image; its masks are pasted and run-length encoded here, so that none outlives it."""
    info, truth = batch.infos[0], batch.ground_truth[0]
    view = view_of(info, batch.views[0])
    image_hw = (info.height, info.width)
    masks, counts = finished(masks, image_hw, view)
    boxes_xyxy, labels = view_to_original(masks.boxes.cpu(), image_hw, view), masks.labels.cpu()
    category_ids, seen = [c["id"] for c in categories], batch.features
    detected_xyxy = view_to_original(seen.boxes[0].cpu(), image_hw, view)
    detected = box_results(info.id, detected_xyxy, seen.scores[0], seen.labels[0], category_ids)
    boxes = box_results(info.id, boxes_xyxy, masks.scores, labels, category_ids)
    pairs = match_boxes(boxes_xyxy, labels, truth, contiguous_labels(truth, categories))
    matched = masks.boxes[[detection for detection, _ in pairs]]
    filled = paste(box_logits(matched), matched, image_hw, view)
    ious = [in_box_iou(counts[n], truth.rles[k], box, image_hw) for (n, k), box in zip(pairs, filled, strict=True)]
    objects = len(truth) - int(truth.iscrowd.sum())
    results = mask_results(boxes, masks.scores, counts, image_hw)
    return ImageResults(detected, results, boxes if masks.own_boxes else None, ious, objects)


def finished(masks: Masks, image_hw: tuple[int, int], view: View | str = "orig") -> tuple[Masks, list[bytes]]:
    """The masks with their final scores, best first where these are told only now, and their compressed counts."""
    if not masks.judge_pasted:
        return masks, paste(masks.mask_logits, masks.grid_boxes, image_hw, view)
    counts, quality = paste_and_judge(masks.mask_logits, masks.grid_boxes, image_hw, view)
    scores, order = torch.sort(masks.scores * quality.to(masks.scores.device), descending=True, stable=True)
    ranked = Masks(
        mask_logits=masks.mask_logits[order],
        boxes=masks.boxes[order],
        scores=scores,
        labels=masks.labels[order],
        frames=None if masks.frames is None else masks.frames[order],
        own_boxes=masks.own_boxes,
    )
    return ranked, [counts[place] for place in order.tolist()]
