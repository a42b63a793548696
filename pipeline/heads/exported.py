"""Heads whose inputs and outputs are tensors only, of one image: what `export` writes. One class per kind of head.

Every one takes the maps it reads, "1 c h w", by their names, in order, and then what it is asked about.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..detectors.base import Features
from ..detectors.positions import sine_embedding
from ..errors import PipelineError
from .base import MaskHead, boxes_in_pixels
from .baseline import Baseline
from .mask2former import Mask2Former
from .mask2former.start import TEMPERATURE, DetectorStart, Start
from .mask_dino import MaskDino
from .mask_frozen_detr import MaskFrozenDetr
from .prior import depth

PIXELS = "xyxy in pixels of the network input"
VIEW = "cxcywh in 0-1 of the view"
DETECTIONS = ("boxes", "queries", "labels", "scores")
"""What the heads take that start from detections."""


@dataclass(frozen=True)
class Sample:
    """One image to check on."""

    features: Features
    boxes: Tensor
    """As the head takes them: cxcywh in 0-1 of the view. "n 4" """
    queries: Tensor
    """ "n d" """
    labels: Tensor
    """ "n" """
    scores: Tensor
    """ "n" """


class ExportedHead(nn.Module, ABC):
    """To be called in `export_mode`, with the tensors that `inputs_of` gives in the order of `inputs`."""

    maps: tuple[str, ...]
    rows: tuple[str, ...]
    """Names of the inputs with one row per detection."""
    outputs: tuple[str, ...]
    per_detection: bool
    """Whether the outputs have one row per detection."""
    boxes: str = ""
    """How `boxes` are to be given, or are given by the head, where there are any."""
    by_rank: bool = False
    """Whether the outputs have one row per query in the order of its score, in which two of nearly one score may
    change places in another runtime."""

    @property
    def inputs(self) -> list[str]:
        """Names, in order."""
        return [*self.maps, *self.rows]

    @abstractmethod
    def inputs_of(self, sample: Sample) -> tuple[Tensor, ...]:
        """An image as this module takes it."""

    @abstractmethod
    def expected(self, sample: Sample) -> list[Tensor]:
        """What the head itself says of it, as in an evaluation: `outputs`."""


class ExportedBoxHead(ExportedHead):
    """A mask for each box: families mask-frozen-detr and baseline.

    boxes "n 4" and queries "n d" -> mask_logits "n r r" in the frame of each box, before sigmoid, and iou "n classes"
    where the head predicts it. A baseline without RoIAlign takes no boxes and gives "n h w" on C1's grid.
    """

    per_detection = True

    def __init__(self, head: MaskFrozenDetr | Baseline) -> None:
        super().__init__()
        self.head = head
        if isinstance(head, MaskFrozenDetr):
            self.maps, scored = _maps_of(head), head.scoring is not None
        else:
            self.maps, scored = ("c1", head.finest), False  # C1 gives the grid at least: no input tells the size
        self.outputs = ("mask_logits", "iou") if scored else ("mask_logits",)
        whole = isinstance(head, Baseline) and not head.config.roi_align
        self.rows, self.boxes = (("queries",), "") if whole else (("boxes", "queries"), PIXELS)

    def inputs_of(self, sample: Sample) -> tuple[Tensor, ...]:
        """See `ExportedHead`."""
        given = {"boxes": boxes_in_pixels(sample.features, [sample.boxes])[0], "queries": sample.queries}
        maps = (sample.features.maps[name].contiguous() for name in self.maps)
        return (*maps, *(given[name] for name in self.rows))

    def expected(self, sample: Sample) -> list[Tensor]:
        """See `ExportedHead`."""
        output = self.head(sample.features, [sample.boxes], [sample.queries])
        return [output.mask_logits] if output.iou is None else [output.mask_logits, output.iou]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`inputs` -> `outputs`."""
        named = dict(zip(self.inputs, inputs, strict=True))
        queries = named.pop("queries")
        boxes = named.pop("boxes", queries)
        rows = boxes[None]
        features = Features(named, (), self.head.strides, queries[None], rows, rows, rows, rows)
        output = self.head(features, [boxes], [queries])
        return (output.mask_logits,) if output.iou is None else (output.mask_logits, output.iou)


class ExportedMask2Former(ExportedHead):
    """Masks and classes of the head's own queries: family mask2former.

    From learned queries nothing but the maps; from detections boxes "n 4", queries "n d", labels "n", scores "n" too.
    class_logits "q classes+1" before softmax, "no object" last, and mask_logits "q h w" before sigmoid, on the grid of
    the mask features.
    """

    outputs = ("class_logits", "mask_logits")

    def __init__(self, head: Mask2Former) -> None:
        super().__init__()
        self.head = head
        self.maps = _maps_of(head)
        self.per_detection = head.detected is not None
        self.rows = DETECTIONS if self.per_detection else ()
        self.boxes = VIEW if self.per_detection else ""

    def inputs_of(self, sample: Sample) -> tuple[Tensor, ...]:
        """See `ExportedHead`."""
        maps = (sample.features.maps[name].contiguous() for name in self.maps)
        return (*maps, *(_detections(sample) if self.per_detection else ()))

    def expected(self, sample: Sample) -> list[Tensor]:
        """See `ExportedHead`."""
        said = self.head(sample.features, [sample.boxes], [sample.queries])[-1][0]
        return [said.class_logits, said.mask_logits]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`inputs` -> `outputs`."""
        head, named = self.head, dict(zip(self.inputs, inputs, strict=True))
        pixels = head.pixels(named["c1"], named[head.finest])
        if head.detected is not None:
            start = _of_one_image(head.detected, [named[name] for name in self.rows], pixels)
        else:
            assert head.learned is not None
            start = head.learned(1)
        said = head.decoder([named[name] for name in head.attended], pixels, start)[-1]
        return said.class_logits[0], said.mask_logits[0]


class ExportedMaskDino(ExportedHead):
    """Classes, boxes and masks of the head's own queries: families mask-dino and di-maskdino.

    From selected tokens nothing but the maps; from detections boxes "n 4", queries "n d", labels "n", scores "n" too.
    class_logits "q classes" before sigmoid, own_boxes "q 4" and mask_logits "q h w" before sigmoid, on the grid of the
    mask features. An image with fewer tokens than the head selects has as many queries as tokens.
    """

    outputs = ("class_logits", "own_boxes", "mask_logits")
    boxes = VIEW

    def __init__(self, head: MaskDino) -> None:
        super().__init__()
        self.head = head
        self.maps = _maps_of(head)
        self.per_detection = head.detected is not None
        self.by_rank = not self.per_detection
        self.rows = DETECTIONS if self.per_detection else ()

    def inputs_of(self, sample: Sample) -> tuple[Tensor, ...]:
        """See `ExportedHead`."""
        maps = (sample.features.maps[name].contiguous() for name in self.maps)
        return (*maps, *(_detections(sample) if self.per_detection else ()))

    def expected(self, sample: Sample) -> list[Tensor]:
        """See `ExportedHead`."""
        boxes, queries, labels, scores = (rows[None] for rows in _detections(sample))
        own = replace(sample.features, boxes=boxes, queries=queries, labels=labels, scores=scores)
        said = self.head(own, [], [])[0]
        assert said.mask_logits is not None
        return [said.class_logits, said.boxes, said.mask_logits]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`inputs` -> `outputs`."""
        named = dict(zip(self.inputs, inputs, strict=True))
        maps = {name: named[name] for name in self.maps}
        none = named["c1"].new_zeros(1, 0, 4)
        boxes, queries, labels, scores = (named[name][None] if name in named else none for name in DETECTIONS)
        features = Features(maps, self.head.encoder, self.head.strides, queries, boxes, scores, labels, none)
        said = self.head.look(features).layers[-1]
        assert said.mask_logits is not None
        return said.class_logits[0], said.boxes[0], said.mask_logits[0]


def exported_head(head: MaskHead, family: str) -> ExportedHead:
    """The head as tensors in, tensors out; raises PipelineError for a family that cannot be exported."""
    if isinstance(head, MaskFrozenDetr | Baseline):
        return ExportedBoxHead(head)
    if isinstance(head, Mask2Former):
        return ExportedMask2Former(head)
    if isinstance(head, MaskDino):
        return ExportedMaskDino(head)
    raise PipelineError(
        f"a head of family '{family}' cannot be exported: nothing says what its inputs and outputs are",
        "add a class to pipeline/heads/exported.py; mask-frozen-detr, baseline, mask2former and mask-dino have one",
    )


def _maps_of(head: MaskHead) -> tuple[str, ...]:
    """Of a head that says what it looks at, as all that can be exported do."""
    assert head.maps_read is not None
    return head.maps_read


def _detections(sample: Sample) -> tuple[Tensor, ...]:
    """`DETECTIONS` of an image."""
    return sample.boxes.float(), sample.queries, sample.labels, sample.scores.float()


def _of_one_image(start: DetectorStart, rows: Sequence[Tensor], pixels: Tensor) -> Start:
    """`DetectorStart.forward` where nothing fills up the batch."""
    boxes, queries, labels, scores = rows
    class_logits = start.class_scale * start.said(labels, scores)
    mask_logits = start.mask_scale * depth(boxes[None], (pixels.shape[2], pixels.shape[3]))
    content = start.norm(start.content(queries) + start.labels(labels))
    positions = start.positions(sine_embedding(boxes * (2 * torch.pi), start.channels, TEMPERATURE))
    return Start(content[None], positions[None], class_logits=class_logits[None], mask_logits=mask_logits)
