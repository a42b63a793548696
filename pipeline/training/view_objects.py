"""Ground truth of whole images in the frame of a view: for heads that tell themselves which objects there are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.coco import Category, contiguous_labels, view_of
from ..data.sources import Batch
from ..data.transforms import original_to_view, xywh_to_xyxy
from ..data.views import View
from .points import sample_masks
from .visible import LEAST_VISIBLE, Shown, clip, show


@dataclass(frozen=True)
class ViewObjects:
    """The k objects that one view shows."""

    labels: Tensor
    """Position of each one's category in the categories. int64 "k" """
    boxes: Tensor
    """Around what the view shows of each: cxcywh in 0-1 of the view, float32 "k 4"."""
    masks: Tensor
    """In the original image, uint8 "k h w"."""
    view: View

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """How much of an object is under points in 0-1 of the view: "p 2" for all, float32 "k p".

        With rows, int64 "m", other points of each of these objects: "m p 2" -> "m p".
        """
        if rows is None:
            rows = torch.arange(len(self), device=self.masks.device)
        if self.view.mirrored:  # the masks are the original image's, the points are the mirror's
            points = torch.stack([1 - points[..., 0], points[..., 1]], dim=-1)
        x0, y0, x1, y1 = self.view.window
        position = points.new_tensor([x0, y0]) + points * points.new_tensor([x1 - x0, y1 - y0])
        return sample_masks(self.masks, rows, position.expand(len(rows), -1, 2))


def view_objects(batch: Batch, categories: Sequence[Category]) -> list[ViewObjects]:
    """The objects of each image, on the device of its features; heads that share the batch share them.

    Crowds and objects without area teach nothing, nor does one of which a view cuts away nearly all.
    """
    return [batch.once(("objects", row), lambda row=row: _objects(batch, row, categories)) for row in range(len(batch))]


def _objects(batch: Batch, row: int, categories: Sequence[Category]) -> ViewObjects:
    truth, device = batch.ground_truth[row], batch.features.boxes.device
    view = view_of(batch.infos[row], batch.views[row])

    def shown(k: int) -> Shown:
        return batch.once(("shown", row, k), lambda: show(truth.rles[k], view))

    usable = np.flatnonzero(~truth.iscrowd & (truth.boxes_xywh[:, 2:] > 0).all(axis=1)).tolist()
    usable = [k for k in usable if shown(k).area and shown(k).share >= LEAST_VISIBLE]
    kept, boxes_xyxy = clip(xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh)), usable, view, shown)
    masks = [shown(k).mask for k in kept]
    return ViewObjects(
        labels=contiguous_labels(truth, categories)[kept].to(device),
        boxes=original_to_view(boxes_xyxy, view.image_hw, view).float().to(device),
        masks=(torch.stack(masks) if masks else torch.zeros((0, *view.image_hw), dtype=torch.uint8)).to(device),
        view=view,
    )
