"""Ground truth for the boxes of a step: which boxes learn, and what each must say at any point."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.coco import Category, contiguous_labels, view_of
from ..data.sources import Batch
from ..data.transforms import original_to_view, view_to_original, xywh_to_xyxy
from ..data.views import View
from ..masks import rle
from .assign import hungarian, jitter, overlap, sample_pairs
from .config import TrainConfig
from .points import sample_mask

LEAST_VISIBLE = 0.05
"""Share of an object's pixels below which, in a view that cuts it, it teaches nothing."""


@dataclass(frozen=True)
class Targets:
    """The m boxes of a batch that learn, boxes of image 0 first."""

    boxes: list[Tensor]
    """Per image, cxcywh in 0-1 of the view. "n 4" """
    queries: list[Tensor]
    """Per image, the query of each box. "n d" """
    labels: Tensor
    """Class of the ground truth, position in the categories. "m" """
    areas: Tensor
    """Pixels of each object's mask, of all of it that the view shows. "m" """
    box_areas: Tensor
    """Of each box, in pixels of the original image. "m" """
    masks: list[Tensor]
    """The object of each box in the original image, uint8 "h w"."""
    frames: Tensor
    """Each box in pixels of the original image, xyxy. "m 4" """
    views: list[View]
    """What of the image each box may see."""

    def __len__(self) -> int:
        return len(self.masks)

    def sample(self, points: Tensor) -> Tensor:
        """Share of the object at points in 0-1 of each box. "m p 2" -> float32 "m p" on the device of the points.

        Nothing where a point lies outside of what the view shows.
        """
        if not len(self):
            return points.new_zeros(points.shape[:2])
        where = points.cpu()
        rows: list[Tensor] = []
        for mask, box, view, at in zip(self.masks, self.frames, self.views, where, strict=True):
            if view.mirrored:  # the frame is the original image's, the points are the mirror's
                at = torch.stack([1 - at[:, 0], at[:, 1]], dim=-1)
            row = sample_mask(mask, box, at)
            rows.append(row if view.whole else row * _inside(view, box, at))
        return torch.stack(rows).to(points.device)


def build_targets(
    batch: Batch, categories: Sequence[Category], config: TrainConfig, generator: torch.Generator
) -> Targets:
    """Choose the boxes of a step and find their ground truth. Crowds and objects without area teach nothing."""
    boxes: list[Tensor] = []
    queries: list[Tensor] = []
    labels: list[Tensor] = []
    areas: list[float] = []
    masks: list[Tensor] = []
    frames: list[Tensor] = []
    views: list[View] = []
    features = batch.features
    for row, (truth, info, name) in enumerate(zip(batch.ground_truth, batch.infos, batch.views, strict=True)):
        view = view_of(info, name)
        detected, pairs, truth_labels = batch.once(
            ("pairs", row, config.match, config.match_iou), lambda row=row: _pairs(batch, row, categories, config)
        )
        pairs = sample_pairs(pairs, config.rois_per_image, generator)
        chosen = jitter(detected[pairs[:, 0]], config.jitter, generator)
        boxes.append(chosen.to(features.boxes.device))
        queries.append(features.queries[row, : len(detected)][pairs[:, 0].to(features.queries.device)])
        labels.append(truth_labels[pairs[:, 1]])
        frames.append(view_to_original(chosen, view.image_hw, view))
        views += [view] * len(pairs)
        for k in pairs[:, 1].tolist():
            shown = batch.once(("shown", row, k), lambda k=k, truth=truth, view=view: _show(truth.rles[k], view))
            masks.append(shown.mask)
            areas.append(shown.area)
    device = features.boxes.device
    every_frame = torch.cat(frames)
    return Targets(
        boxes=boxes,
        queries=queries,
        labels=torch.cat(labels).to(device),
        areas=torch.tensor(areas, dtype=torch.float32, device=device),
        box_areas=(every_frame[:, 2:] - every_frame[:, :2]).prod(1).float().to(device),
        masks=masks,
        frames=every_frame,
        views=views,
    )


def _pairs(
    batch: Batch, row: int, categories: Sequence[Category], config: TrainConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one image: its detected boxes, which of them learn which object, and the label of every object."""
    truth, features, view = batch.ground_truth[row], batch.features, view_of(batch.infos[row], batch.views[row])
    usable = torch.from_numpy(np.flatnonzero(~truth.iscrowd & (truth.boxes_xywh[:, 2:] > 0).all(axis=1)))
    every_box = xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh))
    if not view.whole:
        usable = _clip(
            every_box, usable, view, lambda k: batch.once(("shown", row, k), lambda: _show(truth.rles[k], view))
        )
    truth_boxes = original_to_view(every_box[usable], view.image_hw, view).float()
    truth_labels = contiguous_labels(truth, categories)
    n = batch.counts[row]
    detected = features.boxes[row, :n].cpu()
    if config.match == "hungarian":
        scores, found = features.scores[row, :n].cpu(), features.labels[row, :n].cpu()
        pairs = hungarian(detected, scores, found, truth_boxes, truth_labels[usable])
    else:
        pairs = overlap(detected, truth_boxes, config.match_iou)
    return detected, torch.stack([pairs[:, 0], usable[pairs[:, 1]]], dim=1), truth_labels


@dataclass(frozen=True)
class _Shown:
    """What a view shows of an object."""

    mask: Tensor
    """The whole object in the original image, uint8 "h w"."""
    area: float
    """Pixels in the window."""
    share: float
    """Of its pixels, those in the window."""
    box: tuple[float, float, float, float]
    """The tightest around the pixels in the window, xyxy in pixels of the original image; zeros if there are none."""


def _show(counts: bytes, view: View) -> _Shown:
    mask = torch.from_numpy(rle.decode(counts, view.image_hw)).view(torch.uint8)
    if view.whole:
        return _Shown(mask, float(mask.sum()), 1.0, view.window)
    x0, y0, x1, y1 = (max(0, math.ceil(edge - 0.5)) for edge in view.window)  # pixels with their centre in the window
    part = mask[y0:y1, x0:x1]
    area, whole = float(part.sum()), float(mask.sum())
    if not area:
        return _Shown(mask, 0.0, 0.0, (0.0, 0.0, 0.0, 0.0))
    rows, columns = (torch.nonzero(part.any(dim=dim)).flatten() for dim in (1, 0))
    left, right = x0 + columns[0].item(), x0 + columns[-1].item() + 1
    top, bottom = y0 + rows[0].item(), y0 + rows[-1].item() + 1
    return _Shown(mask, area, area / whole, (left, top, right, bottom))


def _clip(boxes_xyxy: Tensor, usable: Tensor, view: View, show: Callable[[int], _Shown]) -> Tensor:
    """Of the usable objects those that the view shows enough of; boxes of those it cuts become what is left, in place.

    That is the part of the box in the window, no larger than the pixels that the window shows need.
    """
    window = boxes_xyxy.new_tensor(view.window)
    kept: list[int] = []
    for k in usable.tolist():
        box = boxes_xyxy[k]
        inside = torch.cat([box[:2].maximum(window[:2]), box[2:].minimum(window[2:])])
        if torch.equal(inside, box):
            kept.append(k)
        elif (inside[2:] > inside[:2]).all() and (shown := show(k)).share >= LEAST_VISIBLE:
            tight = boxes_xyxy.new_tensor(shown.box)
            box[:2], box[2:] = inside[:2].maximum(tight[:2]), inside[2:].minimum(tight[2:])
            if (box[2:] > box[:2]).all():
                kept.append(k)
    return torch.tensor(kept, dtype=torch.int64)


def _inside(view: View, box_xyxy: Tensor, points: Tensor) -> Tensor:
    """1 where points in 0-1 of a box of the original image lie in the window, else 0. "p 2" -> float32 "p" """
    window = box_xyxy.new_tensor(view.window)
    position = box_xyxy[:2] + points * (box_xyxy[2:] - box_xyxy[:2])
    return ((position >= window[:2]) & (position <= window[2:])).all(dim=1).float()
