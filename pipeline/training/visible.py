"""What a view shows of the objects of its image: those that it cuts are as large as what is left of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.views import View
from ..masks import rle

LEAST_VISIBLE = 0.05
"""Share of an object's pixels below which, in a view that cuts it, it teaches nothing."""


@dataclass(frozen=True)
class Shown:
    """What a view shows of an object."""

    mask: Tensor
    """The whole object in the original image, uint8 "h w", row-major in memory."""
    area: float
    """Pixels in the window."""
    share: float
    """Of its pixels, those in the window."""
    box: tuple[float, float, float, float]
    """The tightest around the pixels in the window, xyxy in pixels of the original image; zeros if there are none."""


def show(counts: bytes, view: View) -> Shown:
    """What the view shows of an object, given as compressed counts in the original image."""
    mask = torch.from_numpy(rle.decode(counts, view.image_hw)).view(torch.uint8).contiguous()  # pycocotools' is not
    if view.whole:
        return Shown(mask, rle.area(counts, view.image_hw), 1.0, view.window)
    x0, y0, x1, y1 = (max(0, math.ceil(edge - 0.5)) for edge in view.window)  # pixels with their centre in the window
    part = mask[y0:y1, x0:x1]
    area, whole = float(part.sum()), float(mask.sum())
    if not area:
        return Shown(mask, 0.0, 0.0, (0.0, 0.0, 0.0, 0.0))
    rows, columns = (torch.nonzero(part.any(dim=dim)).flatten() for dim in (1, 0))
    left, right = x0 + columns[0].item(), x0 + columns[-1].item() + 1
    top, bottom = y0 + rows[0].item(), y0 + rows[-1].item() + 1
    return Shown(mask, area, area / whole, (left, top, right, bottom))


def clip(
    boxes_xyxy: Tensor, usable: Sequence[int], view: View, show: Callable[[int], Shown]
) -> tuple[list[int], Tensor]:
    """Of the usable rows of "k 4" (pixels of the original image) those that the view shows enough of, and their boxes.

    The box of an object that the view cuts is the part in the window, no larger than the pixels left there need.
    `show` gives what the view shows of an object; it is asked for those that are cut.
    """
    window = boxes_xyxy.new_tensor(view.window)
    kept: list[int] = []
    boxes: list[Tensor] = []
    for k in usable:
        box = _common(boxes_xyxy[k], window)
        if not torch.equal(box, boxes_xyxy[k]):
            if (box[2:] <= box[:2]).any() or (shown := show(k)).share < LEAST_VISIBLE:
                continue
            box = _common(box, boxes_xyxy.new_tensor(shown.box))
            if (box[2:] <= box[:2]).any():
                continue
        kept.append(k)
        boxes.append(box)
    return kept, torch.stack(boxes) if boxes else boxes_xyxy[:0]


def _common(first: Tensor, second: Tensor) -> Tensor:
    """What two boxes xyxy share; ends before it begins where that is nothing. "4" """
    return torch.cat([first[:2].maximum(second[:2]), first[2:].minimum(second[2:])])
