"""Mask2Former on frozen features: pixel features and masked-attention decoder -> masks, classes and scores."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...data.coco import Category
from ...data.sources import Batch
from ...detectors.base import Features
from ...errors import PipelineError
from ...masks.query_masks import QueryMasks
from ...training.config import TrainConfig
from ...training.mask_terms import MaskTerms
from ...training.precision import autocast
from ...training.segment_objects import SegmentTargets, segment_targets
from ...training.set_loss import SetLoss
from ...training.view_objects import ViewObjects, view_objects
from ..base import MaskHead, Masks, Widths, all_rows, detections, encoder_maps, images_of_one_size, require_c1
from ..instances import instances
from ..pixels import PixelFeatures
from .config import Mask2FormerConfig
from .decoder import MaskedAttentionDecoder, Prediction
from .start import DetectorStart, LearnedStart, Start


class Mask2Former(MaskHead):
    """The masked-attention decoder at the widths of any detector, whose encoder takes the pixel decoder's place."""

    def __init__(self, config: Mask2FormerConfig, widths: Widths) -> None:
        """Raises PipelineError where the choices and the widths contradict each other."""
        super().__init__()
        require_c1(widths, "its masks are on that grid; name a tap 'c1' in the detector's TOML")
        self.config = config
        self.strides = widths.strides
        if config.task != "instance" and not widths.segments:
            raise PipelineError(
                f"task={config.task} takes its classes from panoptic ground truth, and the features come without any",
                "extract with --panoptic JSON",
            )
        self.classes = widths.segments
        encoder = encoder_maps(widths, config.encoder_layer)
        self.finest = encoder[0]
        self.encoder = tuple(reversed(encoder[: config.levels or None]))
        self.attended = self.encoder[: config.layers]
        """By the layers in turn; where these are few, the finest maps are left out."""
        looked_at = {*self.attended, self.finest}
        self.maps_read = ("c1", *(name for name in self.encoder if name in looked_at))
        width = config.hidden
        self.pixels = PixelFeatures(widths.channels["c1"], widths.channels[self.finest], width, config.mask_cells)
        self.mask_stride = widths.strides["c1"] // config.mask_cells
        self.learned: LearnedStart | None = None
        self.detected: DetectorStart | None = None
        if config.start == "learned":
            self.learned = LearnedStart(config.queries, width)
        else:
            self.detected = DetectorStart(widths.query_dim, widths.classes, width)
        self.decoder = MaskedAttentionDecoder(
            [widths.channels[name] for name in self.encoder],
            width=width,
            heads=config.heads,
            layers=config.layers,
            feed_forward=config.feed_forward,
            classes=widths.classes if config.task == "instance" else len(widths.segments),
        )

    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> list[list[Prediction]]:
        """Predictions before the first layer and after each, of every image: [layer][image].

        boxes, queries: as in `MaskHead.forward`, but of the first n detections of `features`, whose labels count too.
        Without a `detector` start they are of no matter.
        """
        found: dict[int, list[Prediction]] = {}
        for rows, group in images_of_one_size(features):
            maps, pixels = [group.map(name) for name in self.attended], self.pixels(group.c1, group.map(self.finest))
            start = self._start(group, [boxes[row] for row in rows], [queries[row] for row in rows], pixels)
            layers = self.decoder(maps, pixels, start)
            for place, row in enumerate(rows):
                n = self.config.queries if self.learned is not None else len(boxes[row])
                found[row] = [Prediction(one.class_logits[place, :n], one.mask_logits[place, :n]) for one in layers]
        return [[found[row][layer] for row in range(len(found))] for layer in range(self.config.layers + 1)]

    def targets(
        self, batch: Batch, categories: Sequence[Category], config: TrainConfig, generator: torch.Generator
    ) -> list[ViewObjects] | SegmentTargets:
        """See `MaskHead.targets`: the objects of each image. An image without any teaches that there is none.

        For the other tasks the segments, of the images that have any: others are not annotated.
        """
        if self.config.task == "instance":
            return view_objects(batch, categories)
        return segment_targets(batch, self.classes, self.config.task)

    def loss(
        self,
        batch: Batch,
        targets: list[ViewObjects] | SegmentTargets,
        config: TrainConfig,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """See `MaskHead.loss`. Mask terms are means over the objects of this batch, of a `micro_batch` over its own."""
        features, counts = batch.features, batch.counts
        if isinstance(targets, SegmentTargets):
            if len(targets) < len(batch):
                features, counts = features.rows(targets.rows), [counts[row] for row in targets.rows]
            targets = targets.objects
        with autocast(config, features.boxes.device):
            layers = self(features, *detections(features, counts))
        criterion = SetLoss(
            class_weight=self.config.class_weight,
            no_object=self.config.no_object,
            masks=MaskTerms(
                bce_weight=config.bce_weight,
                dice_weight=config.dice_weight,
                points=self.config.mask_points,
                oversample=config.oversample,
                importance=config.importance,
            ),
        )
        return criterion.terms(layers, targets, generator)

    @torch.inference_mode()
    def predict(self, features: Features, counts: list[int] | None = None) -> list[Masks]:
        """See `MaskHead.predict`. Boxes, scores and labels are the head's own, best score first.

        For the other tasks these are of things alone, and `Masks.queries` is what to make the segments of.
        """
        return self._instances(self._layers(features, counts)[-1], features)

    @torch.inference_mode()
    def predict_layers(self, features: Features, counts: list[int] | None = None) -> list[list[Masks]]:
        """See `MaskHead.predict_layers`."""
        return [self._instances(layer, features) for layer in self._layers(features, counts)]

    def _layers(self, features: Features, counts: list[int] | None) -> list[list[Prediction]]:
        boxes, queries = detections(features, counts or all_rows(features))
        with torch.autocast(features.boxes.device.type, torch.bfloat16, enabled=self.amp):
            return self(features, boxes, queries)

    def _instances(self, predictions: Sequence[Prediction], features: Features) -> list[Masks]:
        """Of each image."""
        found: list[Masks] = []
        for prediction, (h, w) in zip(predictions, features.input_hw.tolist(), strict=True):
            stride = self.mask_stride
            probs = prediction.class_logits.float().softmax(-1)  # "no object" last
            view = (h / stride, w / stride)
            if self.config.task == "instance":
                found.append(instances(probs[:, :-1], prediction.mask_logits, view, self.config.detections))
                continue
            things = [label for label, one in enumerate(self.classes) if one.instance_label >= 0]
            masks = instances(probs[:, things], prediction.mask_logits, view, self.config.detections)
            labels = masks.labels.new_tensor([self.classes[label].instance_label for label in things])
            queries = QueryMasks(
                probs=probs,
                mask_logits=prediction.mask_logits,
                stride=stride,
                input_hw=(h, w),
                classes=self.classes,
                task=self.config.task,
                object_threshold=self.config.object_threshold,
                overlap_threshold=self.config.overlap_threshold,
            )
            found.append(replace(masks, labels=labels[masks.labels], queries=queries))
        return found

    def _start(self, features: Features, boxes: list[Tensor], queries: list[Tensor], pixels: Tensor) -> Start:
        if self.detected is None:
            assert self.learned is not None
            return self.learned(len(features.boxes))
        labels = [rows[: len(own)] for rows, own in zip(features.labels, boxes, strict=True)]
        scores = [rows[: len(own)] for rows, own in zip(features.scores, boxes, strict=True)]
        return self.detected(queries, boxes, labels, scores, (pixels.shape[2], pixels.shape[3]))
