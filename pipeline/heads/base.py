"""What every mask head takes and gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featcache import CacheSpec

from ..data.transforms import cxcywh_to_xyxy
from ..detectors.base import Features
from ..masks.scores import mask_quality


@dataclass(frozen=True)
class Widths:
    """The sizes a head must fit: what the detector's features look like."""

    channels: dict[str, int]
    """Map name -> channels."""
    strides: dict[str, int]
    """Map name -> input pixels per cell."""
    encoder: tuple[str, ...]
    """Names of the encoder maps, fine to coarse."""
    query_dim: int
    classes: int

    @classmethod
    def of_cache(cls, spec: CacheSpec) -> "Widths":
        """The widths of the features in a cache."""
        return cls(
            channels={level.name: level.channels for level in spec.levels},
            strides={level.name: level.stride for level in spec.levels},
            encoder=tuple(spec.source["encoder"]),  # pyright: ignore[reportArgumentType]
            query_dim=spec.query_dim,
            classes=len(spec.recipe["categories"]),  # pyright: ignore[reportArgumentType]
        )


@dataclass(frozen=True)
class HeadOutput:
    """Masks of the m boxes of a batch, boxes of image 0 first."""

    mask_logits: Tensor
    """In the frame of each box, before sigmoid. "m r r" """
    iou: Tensor | None = None
    """Predicted mask IoU per class (mask scoring), None where the head does not predict it. "m classes" """


@dataclass(frozen=True)
class Masks:
    """What a head says about one image."""

    mask_logits: Tensor
    """In the frame of each box, before sigmoid. "n r r" """
    boxes: Tensor
    """cxcywh in 0-1 of the view. "n 4" """
    scores: Tensor
    """Final confidence: class score times mask quality. "n" """
    labels: Tensor
    """int64, position in the categories sorted by id. "n" """


class MaskHead(nn.Module, ABC):
    """A light network from frozen features to instance masks. A family overrides `forward`, rarely `predict`."""

    amp: bool = False
    """Predict in bfloat16, as a head that was trained so should."""

    @abstractmethod
    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
        """Mask logits of the given boxes.

        boxes: per image "n 4", cxcywh in 0-1 of the view; need not be the detector's own (training jitters them).
        queries: per image "n d", the query embedding that goes with each box.
        """

    @torch.inference_mode()
    def predict(self, features: Features, counts: list[int] | None = None) -> list[Masks]:
        """Masks of every detection, one `Masks` per image.

        counts: how many rows of each image are real detections; all of them when None.
        """
        number = features.boxes.shape[1]
        counts = counts or [number] * len(features.boxes)
        boxes = [rows[:n] for rows, n in zip(features.boxes, counts, strict=True)]
        queries = [rows[:n] for rows, n in zip(features.queries, counts, strict=True)]
        with torch.autocast(features.boxes.device.type, torch.bfloat16, enabled=self.amp):
            output = self(features, boxes, queries)
        logits = output.mask_logits.float().split(counts)
        iou = output.iou.float().split(counts) if output.iou is not None else [None] * len(counts)
        found: list[Masks] = []
        for image, n in enumerate(counts):
            labels = features.labels[image, :n]
            predicted = iou[image]
            if predicted is None:
                quality = mask_quality(logits[image])
            else:
                quality = predicted.gather(1, labels[:, None])[:, 0].clamp(0, 1)
            scores = features.scores[image, :n] * quality
            found.append(Masks(mask_logits=logits[image], boxes=boxes[image], scores=scores, labels=labels))
        return found


def pool_without_padding(
    pool: Callable[[Features, list[Tensor]], Tensor], features: Features, boxes: list[Tensor]
) -> Tensor:
    """`pool(features, boxes)`, image by image where the images of a batch differ in size.

    GroupNorm, upsampling and attention would all see the padding, and an image would get other masks in other company.
    """
    if len(features.input_hw.unique(dim=0)) == 1:
        return pool(features, boxes)
    return torch.cat([pool(features.image(row), [rows]) for row, rows in enumerate(boxes)])


def boxes_in_pixels(features: Features, boxes: list[Tensor]) -> list[Tensor]:
    """cxcywh in 0-1 of the view -> xyxy in input pixels, per image, float32. "n 4" """
    scaled: list[Tensor] = []
    for rows, (h, w) in zip(boxes, features.input_hw.tolist(), strict=True):
        scaled.append(cxcywh_to_xyxy(rows.float()) * rows.new_tensor([w, h, w, h], dtype=torch.float32))
    return scaled
