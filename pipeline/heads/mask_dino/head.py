"""Mask DINO and DI-MaskDINO on frozen features: tokens of the encoder maps -> queries -> boxes, masks, classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...data.coco import Category
from ...data.sources import Batch
from ...detectors.base import Features
from ...detectors.positions import Pyramid, map_positions
from ...training.box_set_loss import BoxSetLoss
from ...training.config import TrainConfig
from ...training.mask_terms import MaskTerms
from ...training.precision import autocast
from ...training.view_objects import ViewObjects, view_objects
from ..base import MaskHead, Masks, Widths, encoder_maps, images_of_one_size, require_c1
from ..instances import instances
from ..pixels import PixelFeatures
from .config import MaskDinoConfig
from .decoder import MaskDinoDecoder
from .denoising import Denoising, denoising_queries
from .interaction import TokenInteraction
from .prediction import LayerPrediction, Predictions
from .readout import Readout
from .selection import Queries, Tokens, TokenSelection
from .start import DetectorStart

TEMPERATURE = 10_000.0
"""Of the sine embeddings of the maps."""


class MaskDino(MaskHead):
    """Two stages and a decoder at the widths of any detector, whose encoder takes the place of the pixel decoder's."""

    def __init__(self, config: MaskDinoConfig, widths: Widths) -> None:
        """Raises PipelineError where the choices and the widths contradict each other."""
        super().__init__()
        require_c1(widths, "its masks are on that grid; name a tap 'c1' in the detector's TOML")
        self.config = config
        self.strides = widths.strides
        encoder = encoder_maps(widths, config.encoder_layer)
        self.finest = encoder[0]
        # Coarse to fine, as the official code takes them: its proposals are smallest in the coarsest map.
        self.encoder = tuple(reversed(encoder[: config.levels or None]))
        self.maps_read = ("c1", *self.encoder)
        width = config.hidden
        sizes = {"heads": config.heads, "feed_forward": config.feed_forward}
        self.pixels = PixelFeatures(widths.channels["c1"], widths.channels[self.finest], width, config.mask_cells)
        self.mask_stride = widths.strides["c1"] // config.mask_cells
        channels = [widths.channels[name] for name in self.encoder]
        self.projections = nn.ModuleList(nn.Conv2d(c, width, 1) if c != width else nn.Identity() for c in channels)
        self.selection: TokenSelection | None = None
        self.detected: DetectorStart | None = None
        if config.start == "tokens":
            self.selection = TokenSelection(width)
        else:
            self.detected = DetectorStart(widths.query_dim, width)
        self.interaction: TokenInteraction | None = None
        if config.interaction_layers:
            layers = config.interaction_layers
            self.interaction = TokenInteraction(width, layers=layers, residual=config.residual, **sizes)
        self.label_embed = nn.Embedding(widths.classes, width)
        self.decoder = MaskDinoDecoder(
            width,
            layers=config.layers,
            levels=len(channels),
            points=config.sampling_points,
            guiding_tokens=config.guiding_tokens,
            **sizes,
        )
        self.readout = Readout(width, widths.classes)

    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> list[LayerPrediction]:
        """The result for each image, no axis for the batch: "q classes", "q 4", "q h w".

        boxes and queries are of no matter: a `detector` start takes those of `features`.
        """
        return self._layers(features)[-1]

    def look(self, features: Features, denoising: Denoising | None = None, *, every_mask: bool = False) -> Predictions:
        """Everything that is said of images of one size, which have no padding.

        every_mask: for the loss; else of the `layers` only the last has masks.
        """
        config = self.config
        pixels = self.pixels(features.c1, features.map(self.finest))
        tokens = self._tokens(features)
        if self.detected is not None:
            queries, selected = self.detected(features, pixels, self.readout, self.label_embed)
        else:
            assert self.selection is not None
            count = config.first_selected if self.interaction is not None else config.queries
            queries, selected = self.selection(tokens, pixels, self.readout, count)
        interaction: tuple[LayerPrediction, ...] = ()
        if self.interaction is not None:
            queries, interaction = self.interaction(queries, tokens, self.readout, config.queries)
        n, blocked = 0, None
        if denoising is not None:
            n, blocked = denoising.content.shape[1], denoising.attention_mask(queries.content.shape[1])
            queries = Queries(
                torch.cat([denoising.content, queries.content], dim=1),
                torch.cat([denoising.references, queries.references], dim=1),
            )
        said = self.decoder(queries, tokens, pixels, self.readout, blocked=blocked, denoising=n, every_mask=every_mask)
        return Predictions(
            layers=tuple(_part(one, n, None) for one in said),
            selected=selected,
            interaction=interaction,
            denoised=tuple(_part(one, 0, n) for one in said) if n else (),
        )

    def targets(
        self, batch: Batch, categories: Sequence[Category], config: TrainConfig, generator: torch.Generator
    ) -> list[ViewObjects]:
        """See `MaskHead.targets`: the objects of each image. An image without any teaches that there is none."""
        return view_objects(batch, categories)

    def loss(
        self, batch: Batch, targets: list[ViewObjects], config: TrainConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `MaskHead.loss`. Terms are means over the objects of this batch, of a `micro_batch` over its own."""
        own = self.config
        criterion = BoxSetLoss(
            class_weight=own.class_weight,
            l1_weight=own.l1_weight,
            giou_weight=own.giou_weight,
            masks=MaskTerms(
                bce_weight=config.bce_weight,
                dice_weight=config.dice_weight,
                points=own.mask_points,
                oversample=config.oversample,
                importance=config.importance,
            ),
        )
        count = sum(map(len, targets))
        parts: list[dict[str, Tensor]] = []
        for rows, group in images_of_one_size(batch.features):
            objects = [targets[row] for row in rows]
            denoising = denoising_queries(
                objects, self.label_embed, queries=own.denoising, noise=own.noise, generator=generator
            )
            with autocast(config, batch.features.boxes.device):
                predictions = self.look(group, denoising, every_mask=True)
            parts.append(criterion.terms(predictions, objects, denoising, generator, count))
        return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}

    @torch.inference_mode()
    def predict(self, features: Features, counts: list[int] | None = None) -> list[Masks]:
        """See `MaskHead.predict`. Boxes, scores and labels are the head's own, best score first."""
        with torch.autocast(features.boxes.device.type, torch.bfloat16, enabled=self.amp):
            final = self(features, list(features.boxes), list(features.queries))
        return self._instances(final, features)

    @torch.inference_mode()
    def predict_layers(self, features: Features, counts: list[int] | None = None) -> list[list[Masks]]:
        """See `MaskHead.predict_layers`."""
        with torch.autocast(features.boxes.device.type, torch.bfloat16, enabled=self.amp):
            layers = self._layers(features, every_mask=True)
        return [self._instances(layer, features) for layer in layers]

    def _layers(self, features: Features, *, every_mask: bool = False) -> list[list[LayerPrediction]]:
        """[layer][image], no axis for the batch; without `every_mask` the last alone."""
        found: dict[int, list[LayerPrediction]] = {}
        for rows, group in images_of_one_size(features):
            layers = self.look(group, every_mask=every_mask).layers
            for place, row in enumerate(rows):
                found[row] = [_of_image(layer, place) for layer in (layers if every_mask else layers[-1:])]
        return [[found[row][layer] for row in range(len(found))] for layer in range(len(found[0]))]

    def _instances(self, predictions: Sequence[LayerPrediction], features: Features) -> list[Masks]:
        """Of each image."""
        found: list[Masks] = []
        for one, (h, w) in zip(predictions, features.input_hw.tolist(), strict=True):
            stride = self.mask_stride
            probs, view = one.class_logits.float().sigmoid(), (h / stride, w / stride)
            assert one.mask_logits is not None
            found.append(instances(probs, one.mask_logits, view, self.config.detections, one.boxes))
        return found

    def _tokens(self, features: Features) -> Tokens:
        maps = [project(features.map(name)) for name, project in zip(self.encoder, self.projections, strict=True)]
        whole = [torch.zeros_like(values[:, 0], dtype=torch.bool) for values in maps]
        channels = self.config.hidden // 2
        positions = [map_positions(one[:1], channels, temperature=TEMPERATURE, offset=0.0) for one in whole]
        return Tokens(
            memory=torch.cat([values.flatten(2).transpose(1, 2) for values in maps], dim=1).float(),
            positions=torch.cat(positions, dim=1),
            pyramid=Pyramid.of_masks(whole),
        )


def _of_image(layer: LayerPrediction, place: int) -> LayerPrediction:
    """Without the axis of the batch."""
    assert layer.mask_logits is not None
    return LayerPrediction(layer.class_logits[place], layer.boxes[place], layer.mask_logits[place])


def _part(prediction: LayerPrediction, start: int, end: int | None) -> LayerPrediction:
    """Of the queries from `start` to before `end`."""
    masks = prediction.mask_logits
    return LayerPrediction(
        prediction.class_logits[:, start:end],
        prediction.boxes[:, start:end],
        None if masks is None else masks[:, start:end],
    )
