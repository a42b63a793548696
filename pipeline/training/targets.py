"""Ground truth for the boxes of a step: which boxes learn, and what each must say at any point."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.coco import Category, contiguous_labels
from ..data.sources import Batch
from ..data.transforms import original_to_view, view_to_original, xywh_to_xyxy
from ..masks import rle
from .assign import hungarian, jitter, overlap, sample_pairs
from .config import TrainConfig
from .points import sample_mask


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
    """Pixels of each object's whole mask. "m" """
    box_areas: Tensor
    """Of each box, in pixels of the original image. "m" """
    masks: list[Tensor]
    """The object of each box in the original image, uint8 "h w"."""
    frames: Tensor
    """Each box in pixels of the original image, xyxy. "m 4" """
    flipped: list[bool]

    def __len__(self) -> int:
        return len(self.masks)

    def sample(self, points: Tensor) -> Tensor:
        """Share of the object at points in 0-1 of each box. "m p 2" -> float32 "m p" on the device of the points."""
        if not len(self):
            return points.new_zeros(points.shape[:2])
        where = points.cpu()
        rows: list[Tensor] = []
        for mask, box, flip, at in zip(self.masks, self.frames, self.flipped, where, strict=True):
            if flip:  # the frame is the original image's, the points are the mirror's
                at = torch.stack([1 - at[:, 0], at[:, 1]], dim=-1)
            rows.append(sample_mask(mask, box, at))
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
    flipped: list[bool] = []
    features = batch.features
    for row, (truth, info, view) in enumerate(zip(batch.ground_truth, batch.infos, batch.views, strict=True)):
        image_hw = (info.height, info.width)
        sizes = truth.boxes_xywh[:, 2:]
        usable = np.flatnonzero(~truth.iscrowd & (sizes > 0).all(axis=1))
        truth_boxes = original_to_view(xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh[usable])), image_hw, view).float()
        truth_labels = contiguous_labels(truth, categories)[torch.from_numpy(usable)]
        n = batch.counts[row]
        detected = features.boxes[row, :n].cpu()
        if config.match == "hungarian":
            scores, found = features.scores[row, :n].cpu(), features.labels[row, :n].cpu()
            pairs = hungarian(detected, scores, found, truth_boxes, truth_labels)
        else:
            pairs = overlap(detected, truth_boxes, config.match_iou)
        pairs = sample_pairs(pairs, config.rois_per_image, generator)
        chosen = jitter(detected[pairs[:, 0]], config.jitter, generator)
        boxes.append(chosen.to(features.boxes.device))
        queries.append(features.queries[row, :n][pairs[:, 0].to(features.queries.device)])
        labels.append(truth_labels[pairs[:, 1]])
        frames.append(view_to_original(chosen, image_hw, view))
        flipped += [view == "hflip"] * len(pairs)
        decoded = {k: torch.from_numpy(rle.decode(truth.rles[usable[k]], image_hw)) for k in set(pairs[:, 1].tolist())}
        masks += [decoded[k].view(torch.uint8) for k in pairs[:, 1].tolist()]
        areas += [float(decoded[k].sum()) for k in pairs[:, 1].tolist()]
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
        flipped=flipped,
    )
