"""What every mask head takes and gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featcache import CacheSpec

from ..data.coco import Category
from ..data.panoptic import SegmentClass, segment_classes
from ..data.sources import Batch
from ..data.transforms import cxcywh_to_xyxy
from ..detectors.base import Features
from ..errors import PipelineError
from ..masks.query_masks import QueryMasks
from ..masks.scores import mask_quality
from ..training.config import TrainConfig
from ..training.criterion import loss_terms
from ..training.precision import autocast
from ..training.targets import build_targets


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
    segments: tuple[SegmentClass, ...] = ()
    """The classes of the panoptic ground truth; none where the features come without any."""
    encoder_layer: int = 0
    """Which layer of the detector's encoder gives these maps, from 1; 0 where the detector does not say."""

    @classmethod
    def of_cache(cls, spec: CacheSpec) -> "Widths":
        """The widths of the features in a cache."""
        return cls(
            channels={level.name: level.channels for level in spec.levels},
            strides={level.name: level.stride for level in spec.levels},
            encoder=tuple(spec.source["encoder"]),
            query_dim=spec.query_dim,
            classes=len(spec.recipe["categories"]),
            segments=segment_classes(spec),
            encoder_layer=spec.source.get("encoder_layer", 0),
        )


def encoder_maps(widths: Widths, layer: int) -> tuple[str, ...]:
    """Names of the maps of an encoder layer, fine to coarse; 0 for those that the detector's config chose.

    Other layers' maps are named as `e8_l2`. Raises PipelineError where the features do not hold them.
    """
    if layer in (0, widths.encoder_layer):
        return widths.encoder
    names = tuple(f"{name}_l{layer}" for name in widths.encoder)
    if not set(names) <= set(widths.channels):
        raise PipelineError(
            f"the features hold no maps of encoder layer {layer}: no '{names[0]}' among {', '.join(widths.channels)}",
            f"extract with extra_encoder_layers = [{layer}] in the detector's TOML",
        )
    return names


def require_c1(widths: Widths, remedy: str) -> None:
    """Raise PipelineError if the features hold no C1; `remedy` is the hint."""
    if "c1" not in widths.channels:
        raise PipelineError(f"the features hold no 'c1' map, only {', '.join(widths.channels)}", remedy)


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
    """In the frame of each box (but see `frames`), before sigmoid. "n r r" """
    boxes: Tensor
    """cxcywh in 0-1 of the view. "n 4" """
    scores: Tensor
    """Final confidence: class score times mask quality (but see `judge_pasted`). "n" """
    labels: Tensor
    """int64, position in the categories sorted by id. "n" """
    frames: Tensor | None = None
    """What the grids of `mask_logits` span, where that is not their boxes: cxcywh in 0-1 of the view. "n 4" """

    queries: QueryMasks | None = None
    """Of a head for semantic or panoptic segmentation: what to make its segments of."""
    own_boxes: bool = False
    """Whether the boxes are the head's own, not the frozen detector's: then they have an AP of their own."""

    judge_pasted: bool = False
    """Whether the quality of each mask is yet to be told from its pixels in the image, and `scores` to be multiplied by
    it: the official inference of Mask2Former and Mask DINO."""

    @property
    def grid_boxes(self) -> Tensor:
        """What the grid of each mask spans: where to paste it. cxcywh in 0-1 of the view, "n 4" """
        return self.boxes if self.frames is None else self.frames


class MaskHead(nn.Module, ABC):
    """A light network from frozen features to instance masks.

    A family that looks into the detector's boxes overrides `forward` alone. One that tells itself which objects there
    are brings its own `predict`, `targets` and `loss` too.
    """

    amp: bool = False
    """Predict in bfloat16, as a head that was trained so should."""
    maps_read: tuple[str, ...] | None = None
    """The maps that it looks at, in training or prediction; None: it may look at any. A cache is read for these alone,
    and features need not hold others: what is missing here, `Features.map` refuses."""

    @abstractmethod
    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> Any:
        """Mask logits of the given boxes, a `HeadOutput`; a family with its own `predict` may return something else.

        boxes: per image "n 4", cxcywh in 0-1 of the view; need not be the detector's own (training jitters them).
        queries: per image "n d", the query embedding that goes with each box.
        """

    def maps_under_boxes(self, spec: CacheSpec, input_hw: tuple[int, int], most: int) -> frozenset[str]:
        """Maps of a cache of which a training step reads the cells under the boxes of `targets` and no others.

        Of an image with this network input, whatever else is in its batch, as long as no image has more than `most`
        boxes. Only those cells are then read of levels in bands; the rest of such a map is zero. None, unless a family
        says more.
        """
        return frozenset()

    def targets(
        self, batch: Batch, categories: Sequence[Category], config: TrainConfig, generator: torch.Generator
    ) -> Sized:
        """What there is to learn from a batch; its length is how many learn, in a step nothing if 0.

        generator: on the CPU, of all that is drawn.
        """
        return build_targets(batch, categories, config, generator)

    def loss(self, batch: Batch, targets: Any, config: TrainConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms by name, each a mean over the `targets`, of `self.targets`; the loss is their sum."""
        with autocast(config, batch.features.boxes.device):
            output = self(batch.features, targets.boxes, targets.queries)
        return loss_terms(output, targets, config, generator)

    @torch.inference_mode()
    def predict(self, features: Features, counts: list[int] | None = None) -> list[Masks]:
        """Masks of every detection, one `Masks` per image.

        counts: how many rows of each image are real detections; all of them when None.
        """
        counts = counts or all_rows(features)
        boxes, queries = detections(features, counts)
        return scored_masks(self.infer(features, boxes, queries), features, counts)

    @torch.inference_mode()
    def infer(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
        """`forward` as predictions have it: in the precision of `amp`, its output in float32."""
        with torch.autocast(features.boxes.device.type, torch.bfloat16, enabled=self.amp):
            output = self(features, boxes, queries)
        return HeadOutput(output.mask_logits.float(), None if output.iou is None else output.iou.float())

    def predict_layers(self, features: Features, counts: list[int] | None = None) -> list[list[Masks]]:
        """As `predict` says it after each layer of the decoder, before the first too: [layer][image], the last is the
        result. Of a family that says it once: just that."""
        return [self.predict(features, counts)]


def all_rows(features: Features) -> list[int]:
    """Counts that take every row of each image for a detection."""
    return [features.boxes.shape[1]] * len(features.boxes)


def detections(features: Features, counts: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes "n 4" and queries "n d" of each image, without the rows that fill up the batch."""
    boxes = [rows[:n] for rows, n in zip(features.boxes, counts, strict=True)]
    return boxes, [rows[:n] for rows, n in zip(features.queries, counts, strict=True)]


def scored_masks(output: HeadOutput, features: Features, counts: list[int]) -> list[Masks]:
    """Masks of the first `counts` detections of each image, with final scores: the class score times the predicted IoU
    for the class, or times eq. (2)'s mask quality where the head predicts none."""
    logits = output.mask_logits.split(counts)
    iou = output.iou.split(counts) if output.iou is not None else [None] * len(counts)
    found: list[Masks] = []
    for image, n in enumerate(counts):
        labels = features.labels[image, :n]
        predicted = iou[image]
        if predicted is None:
            quality = mask_quality(logits[image])
        else:
            quality = predicted.gather(1, labels[:, None])[:, 0].clamp(0, 1)
        scores = features.scores[image, :n] * quality
        found.append(Masks(mask_logits=logits[image], boxes=features.boxes[image, :n], scores=scores, labels=labels))
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


def images_of_one_size(features: Features) -> Iterator[tuple[list[int], Features]]:
    """The images that have one size, with their rows; their maps are without padding, which attention would see."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for row, hw in enumerate(features.input_hw.tolist()):
        sizes.setdefault(tuple(hw), []).append(row)
    if len(sizes) == 1:
        yield list(range(len(features.boxes))), features
        return
    for rows in sizes.values():
        yield rows, features.rows(rows)


def to_width(maps: Tensor, width: int) -> Tensor:
    """The first `width` channels, zeros where there are fewer: how maps of other widths are added without a parameter.

    "b c h w" -> "b width h w"
    """
    missing = max(0, width - maps.shape[1])
    return F.pad(maps[:, :width], (0, 0, 0, 0, 0, missing))


def boxes_in_pixels(features: Features, boxes: list[Tensor]) -> list[Tensor]:
    """cxcywh in 0-1 of the view -> xyxy in input pixels, per image, float32. "n 4" """
    scaled: list[Tensor] = []
    for rows, (h, w) in zip(boxes, features.input_hw.tolist(), strict=True):
        scaled.append(cxcywh_to_xyxy(rows.float()) * rows.new_tensor([w, h, w, h], dtype=torch.float32))
    return scaled
