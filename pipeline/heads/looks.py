"""One image seen in several views: masks from the mean of what a head says of a detection in each that shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache import ImageInfo

from ..data.coco import view_of
from ..data.transforms import original_to_view, view_to_original
from ..data.views import View
from ..detectors.base import Features
from ..errors import PipelineError
from .base import HeadOutput, MaskHead, Masks, scored_masks

SLACK = 1e-6
"""Of the longer side of an image: so far a box may leave a window by rounding and still lie in it."""


@dataclass(frozen=True)
class Look:
    """What a view shows of n detections of an image that were found in another view."""

    features: Features
    """Of the view, b = 1; its maps count and nothing else."""
    boxes: Tensor
    """Of all detections, cxcywh in 0-1 of this view. "n 4" """
    whole: Tensor
    """Which of them the view shows, but for what lies outside of the image. bool "n" """
    mirrored: bool
    """Whether it is the mirror image of the view in which they were found."""
    weight: float
    """Pixels of the canvas per pixel of the image, 1 for the whole image: an outline seen twice as large has twice the
    detail in each direction."""


def looks(
    features: Features, info: ImageInfo, views: Sequence[str], see: Callable[[str], Features], *, first: str = "orig"
) -> list[Look]:
    """What the first view of an image shows, and each of these views where it shows a detection whole.

    features: of the first view, b = 1, with its detections. see: gives the features of a view by its name. Raises
    UsageError for an unknown name.
    """
    image_hw, own = (info.height, info.width), view_of(info, first)
    boxes = features.boxes[0]
    boxes_xyxy = view_to_original(boxes, image_hw, own)
    found = [Look(features, boxes, torch.ones_like(boxes[:, 0], dtype=torch.bool), False, _weight(own))]
    for name in dict.fromkeys(views):  # a view named twice is no second look
        view = view_of(info, name)
        whole = shown_whole(boxes_xyxy, view)
        if name != first and whole.any():
            rows = original_to_view(boxes_xyxy, image_hw, view).to(boxes.dtype)
            found.append(Look(see(name), rows, whole, view.mirrored != own.mirrored, _weight(view)))
    return found


def shown_whole(boxes_xyxy: Tensor, view: View) -> Tensor:
    """Whether a view shows all that the image holds of each box: xyxy in pixels of the original, "n 4" -> bool "n" """
    height, width = view.image_hw
    inside = boxes_xyxy.clamp(min=0).minimum(boxes_xyxy.new_tensor([width, height, width, height]))
    left, top, right, bottom = view.window
    slack = SLACK * max(height, width)
    low, high = inside.new_tensor([left, top]) - slack, inside.new_tensor([right, bottom]) + slack
    return ((inside[:, :2] >= low) & (inside[:, 2:] <= high)).all(1)


@torch.inference_mode()
def predict_looks(head: MaskHead, seen: Sequence[Look]) -> Masks:
    """As `MaskHead.predict` of the first look, but from the weighted mean of what each detection gets in the looks that
    show it whole: of its logits, and of its mask IoU where the head predicts that.

    The first look must show all detections; labels, scores and query embeddings are taken from it. Raises PipelineError
    for a family with a `predict` of its own: what it finds in two views need not be the same objects.
    """
    if type(head).predict is not MaskHead.predict:
        raise PipelineError(
            f"a {type(head).__name__} predicts in a way of its own, not box by box: "
            "it has no masks to average over views",
            "leave out --views",
        )
    features = seen[0].features
    outputs = [head.infer(look.features, [look.boxes[look.whole]], [features.queries[0, look.whole]]) for look in seen]
    straight = [
        output.mask_logits.flip(-1) if look.mirrored else output.mask_logits
        for look, output in zip(seen, outputs, strict=True)
    ]
    ious = [output.iou for output in outputs if output.iou is not None]
    mean = HeadOutput(_mean(straight, seen), _mean(ious, seen) if ious else None)
    return scored_masks(mean, features, [len(features.boxes[0])])[0]


def _mean(values: Sequence[Tensor], seen: Sequence[Look]) -> Tensor:
    """Of what each look says of the detections it shows whole, the weighted mean for every detection. "n ..." """
    total = values[0].new_zeros(len(seen[0].whole), *values[0].shape[1:])
    weight = total.new_zeros(len(total))
    for look, own in zip(seen, values, strict=True):
        total[look.whole] += look.weight * own
        weight += look.weight * look.whole
    return total / weight.view(-1, *[1] * (total.ndim - 1))


def _weight(view: View) -> float:
    left, top, right, bottom = view.window
    height, width = view.image_hw
    return height * width / ((right - left) * (bottom - top))
