"""Ground truth for the boxes of a step: which boxes learn, and what each must say at any point."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..data.coco import Category, contiguous_labels, view_of
from ..data.sources import Batch
from ..data.transforms import original_to_view, view_to_original, xywh_to_xyxy
from ..data.views import View
from .assign import hungarian, jitter, overlap, sample_pairs
from .box_truth import BoxTruth
from .config import TrainConfig
from .visible import clip, show


@dataclass(frozen=True)
class Targets:
    """The m boxes of a batch that learn, boxes of image 0 first."""

    boxes: list[Tensor]
    """Per image, cxcywh in 0-1 of the view. "n 4" """
    queries: list[Tensor]
    """Per image, the query of each box. "n d" """
    labels: Tensor
    """Class of the ground truth, position in the categories. "m" """
    detected_labels: Tensor
    """Class that the detector gave to the detection that learns. "m" """
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
    _truth: dict[torch.device, BoxTruth] = field(
        default_factory=dict[torch.device, BoxTruth], init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.masks)

    def sample(self, points: Tensor) -> Tensor:
        """Share of the object at points in 0-1 of each box. "m p 2" -> float32 "m p" on the device of the points.

        Nothing where a point lies outside of what the view shows.
        """
        if not len(self):
            return points.new_zeros(points.shape[:2])
        if points.device not in self._truth:  # kept: a loss looks more than once
            self._truth[points.device] = BoxTruth.of(self.masks, self.frames, self.views, points.device)
        return self._truth[points.device].sample(points)


def build_targets(
    batch: Batch, categories: Sequence[Category], config: TrainConfig, generator: torch.Generator
) -> Targets:
    """Choose the boxes of a step and find their ground truth. Crowds and objects without area teach nothing."""
    boxes: list[Tensor] = []
    queries: list[Tensor] = []
    labels: list[Tensor] = []
    detected_labels: list[Tensor] = []
    areas: list[float] = []
    masks: list[Tensor] = []
    frames: list[Tensor] = []
    views: list[View] = []
    features = batch.features
    for row, (truth, info, name) in enumerate(zip(batch.ground_truth, batch.infos, batch.views, strict=True)):
        view = view_of(info, name)
        learners = batch.once(
            ("learners", row, learners_key(config)), lambda row=row: find_learners(batch, row, categories, config)
        )
        pairs = sample_pairs(learners.pairs, config.rois_per_image, generator)
        chosen = jitter(learners.boxes(pairs), config.jitter, generator)
        boxes.append(chosen.to(features.boxes.device))
        own = pairs[:, 0].to(features.queries.device)
        queries.append(features.queries[row, : len(learners.detected)][own])
        labels.append(learners.truth_labels[pairs[:, 1]])
        detected_labels.append(features.labels[row][own])
        frames.append(view_to_original(chosen, view.image_hw, view))
        views += [view] * len(pairs)
        for k in pairs[:, 1].tolist():
            shown = batch.once(("shown", row, k), lambda k=k, truth=truth, view=view: show(truth.rles[k], view))
            masks.append(shown.mask)
            areas.append(shown.area)
    device = features.boxes.device
    every_frame = torch.cat(frames)
    return Targets(
        boxes=boxes,
        queries=queries,
        labels=torch.cat(labels).to(device),
        detected_labels=torch.cat(detected_labels),
        areas=torch.tensor(areas, dtype=torch.float32, device=device),
        box_areas=(every_frame[:, 2:] - every_frame[:, :2]).prod(1).float().to(device),
        masks=masks,
        frames=every_frame,
        views=views,
    )


@dataclass(frozen=True)
class Learners:
    """Of one image: which detection may learn which object, and in which box."""

    pairs: Tensor
    """(detection, object), int64 "p 2" """
    detected: Tensor
    """The detected boxes, cxcywh in 0-1 of the view. "n 4" """
    truth: Tensor
    """Those of all objects, zeros of those that teach nothing. "k 4" """
    truth_labels: Tensor
    """Of all objects, position in the categories. "k" """
    in_truth: bool
    """Whether they learn in the box of the object, not in their own."""

    def boxes(self, pairs: Tensor) -> Tensor:
        """The box in which each of some of the pairs learns. "q 2" -> "q 4" """
        return self.truth[pairs[:, 1]] if self.in_truth else self.detected[pairs[:, 0]]


def learners_key(config: TrainConfig) -> tuple[object, ...]:
    """The settings that decide on the `Learners`: trainings that agree in them may share these."""
    return (config.match, config.match_iou, config.cost_class, config.cost_bbox, config.cost_giou, config.roi_boxes)


def find_learners(batch: Batch, row: int, categories: Sequence[Category], config: TrainConfig) -> Learners:
    """Match the detections of one image with its objects, crowds and those without area left out."""
    truth, features, view = batch.ground_truth[row], batch.features, view_of(batch.infos[row], batch.views[row])
    usable: list[int] = np.flatnonzero(~truth.iscrowd & (truth.boxes_xywh[:, 2:] > 0).all(axis=1)).tolist()
    boxes_xyxy = xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh))
    if view.whole:
        boxes_xyxy = boxes_xyxy[usable]
    else:
        usable, boxes_xyxy = clip(
            boxes_xyxy, usable, view, lambda k: batch.once(("shown", row, k), lambda: show(truth.rles[k], view))
        )
    truth_boxes = original_to_view(boxes_xyxy, view.image_hw, view).float()
    truth_labels = contiguous_labels(truth, categories)
    n = batch.counts[row]
    detected = features.boxes[row, :n].cpu()
    if config.match == "hungarian":
        scores, found = features.scores[row, :n].cpu(), features.labels[row, :n].cpu()
        pairs = hungarian(
            detected,
            scores,
            found,
            truth_boxes,
            truth_labels[usable],
            cost_class=config.cost_class,
            cost_bbox=config.cost_bbox,
            cost_giou=config.cost_giou,
        )
    else:
        pairs = overlap(detected, truth_boxes, config.match_iou)
    objects = torch.tensor(usable, dtype=torch.int64)
    truth_of_all = truth_boxes.new_zeros(len(truth_labels), 4).index_copy(0, objects, truth_boxes)
    return Learners(
        pairs=torch.stack([pairs[:, 0], objects[pairs[:, 1]]], dim=1),
        detected=detected,
        truth=truth_of_all,
        truth_labels=truth_labels,
        in_truth=config.roi_boxes == "truth",
    )
