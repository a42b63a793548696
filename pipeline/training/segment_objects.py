"""Panoptic ground truth in the frame of a view: what heads for semantic and panoptic segmentation learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.coco import view_of
from ..data.panoptic import SegmentClass
from ..data.sources import Batch
from ..data.transforms import original_to_view
from ..data.views import View
from ..errors import PipelineError
from ..masks.paste import pixels_between
from ..masks.query_masks import Task
from .view_objects import ViewObjects
from .visible import LEAST_VISIBLE, Shown, show


@dataclass(frozen=True)
class SegmentTargets:
    """The images of a batch that are annotated, and the objects of each; others teach nothing."""

    rows: list[int]
    objects: list[ViewObjects]

    def __len__(self) -> int:
        return len(self.rows)


def segment_targets(batch: Batch, classes: Sequence[SegmentClass], task: Task) -> SegmentTargets:
    """The segments of each image, on the device of its features; heads that share the batch share them.

    panoptic: every segment but crowds, which teach nothing. semantic: everything of a class is one object. Raises
    PipelineError where the source has no panoptic ground truth.
    """
    rows = [row for row in range(len(batch)) if len(batch.segments(row))]
    objects = [batch.once(("segments", task, row), lambda row=row: _objects(batch, row, classes, task)) for row in rows]
    return SegmentTargets(rows, objects)


def segment_labels(category_ids: Sequence[int], classes: Sequence[SegmentClass]) -> list[int]:
    """The label of each category; raises PipelineError for one that is not among the classes."""
    position = {one.category_id: label for label, one in enumerate(classes)}
    if strange := [category_id for category_id in category_ids if category_id not in position]:
        raise PipelineError(
            f"the panoptic ground truth has category {strange[0]}, the head has no such class",
            "use ground truth with the categories that the head was trained on",
        )
    return [position[category_id] for category_id in category_ids]


def _objects(batch: Batch, row: int, classes: Sequence[SegmentClass], task: Task) -> ViewObjects:
    truth, device = batch.segments(row), batch.features.boxes.device
    view = view_of(batch.infos[row], batch.views[row])
    labels = segment_labels(truth.category_ids.tolist(), classes)
    masks: dict[object, tuple[int, Tensor]] = {}
    for k, label in enumerate(labels):
        if task == "panoptic" and truth.iscrowd[k]:
            continue
        shown: Shown = batch.once(("segment shown", row, k), lambda k=k: show(truth.rles[k], view))
        cut_away = task == "panoptic" and classes[label].isthing and shown.share < LEAST_VISIBLE
        if shown.area and not cut_away:
            name = ("class", label) if task == "semantic" else ("segment", k)
            mask = shown.mask if name not in masks else shown.mask | masks[name][1]
            masks[name] = (label, mask)
    found = [mask for _, mask in masks.values()]
    boxes_xyxy = torch.tensor([_box(mask, view) for mask in found], dtype=torch.float64).view(-1, 4)
    return ViewObjects(
        labels=torch.tensor([label for label, _ in masks.values()], dtype=torch.int64, device=device),
        boxes=original_to_view(boxes_xyxy, view.image_hw, view).float().to(device),
        masks=(torch.stack(found) if found else torch.zeros((0, *view.image_hw), dtype=torch.uint8)).to(device),
        view=view,
    )


def _box(mask: Tensor, view: View) -> list[float]:
    """The tightest around what the window shows of a mask, xyxy in pixels of the original image."""
    x0, y0, x1, y1 = view.window
    rows, columns = pixels_between(y0, y1, view.image_hw[0]), pixels_between(x0, x1, view.image_hw[1])
    part = mask[rows.start : rows.stop, columns.start : columns.stop]
    y, x = torch.nonzero(part, as_tuple=True)
    left, top = columns.start + int(x.min()), rows.start + int(y.min())
    right, bottom = columns.start + int(x.max()) + 1, rows.start + int(y.max()) + 1
    return [max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)]
