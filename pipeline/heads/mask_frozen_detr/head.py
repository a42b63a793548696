"""Mask Frozen-DETR: encoder maps and C1 -> F -> RoIAlign -> box encoder x query encoder -> mask logits (figure 7)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...detectors.base import Features
from ...errors import PipelineError
from ...ops.roi_align import roi_align
from ..base import (
    HeadOutput,
    MaskHead,
    Widths,
    boxes_in_pixels,
    encoder_maps,
    pool_without_padding,
    require_c1,
    to_width,
)
from .box_encoder import build_box_encoder
from .config import HeadConfig
from .image_encoder import build_image_encoder
from .mask_head import SegmenterHead, dot_product
from .mask_scoring import MaskScoring
from .query_encoder import build_query_layer


class ChannelMapper(nn.Linear):
    """A linear layer on the channels of maps, "b c h w" -> "b hidden h w"."""

    def forward(self, input: Tensor, bias: bool = True) -> Tensor:
        """Without its bias where another map of a sum brings it."""
        return F.conv2d(input, self.weight[:, :, None, None], self.bias if bias else None)


class MaskFrozenDetr(MaskHead):
    """The paper's head at the widths of any detector. `config` chooses the parts, `widths` come from the cache."""

    def __init__(self, config: HeadConfig, widths: Widths) -> None:
        """Raises PipelineError where the choices and the widths contradict each other."""
        super().__init__()
        self.config = config
        self.encoder = encoder_maps(widths, config.encoder_layer)
        self.strides = widths.strides
        self.finest = self.encoder[0]
        width = _common_width(widths, self.encoder)
        hidden = config.hidden
        if config.image_encoder in ("deformable", "swin") and width % config.heads:
            raise PipelineError(
                f"the encoder maps have {width} channels, which heads = {config.heads} do not divide",
                "choose other heads, or image_encoder = 'convnext' or 'none'",
            )
        if config.c1:
            require_c1(widths, "choose c1 = false and neck = false, or name a tap 'c1' in the detector's TOML")
        self.with_c1 = config.c1 and widths.strides[self.finest] > widths.strides["c1"]
        self.image_encoder = build_image_encoder(config, width, len(self.encoder))
        self.neck = (
            nn.Sequential(nn.Conv2d(widths.channels["c1"], width, 1), nn.GroupNorm(math.gcd(32, width), width))
            if self.with_c1 and config.neck
            else None
        )
        self.region_mapper = ChannelMapper(width, hidden) if hidden != width else None
        self.query_mapper = nn.Linear(widths.query_dim, hidden) if hidden != widths.query_dim else nn.Identity()
        self.box_encoder, steps = build_box_encoder(config, widths.query_dim)
        self.query_layers = nn.ModuleList(
            nn.ModuleList(
                build_query_layer(kind, hidden, widths.query_dim, config.heads) for kind in config.query_encoder
            )
            for _ in range(steps)
        )
        self.mask_head = SegmenterHead(hidden) if config.mask_head == "segmenter" else None
        self.mask_bias = nn.Linear(hidden, 1) if config.mask_bias else None
        self.scoring = MaskScoring(hidden, config.roi, widths.classes) if config.mask_scoring else None

    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
        """See `MaskHead.forward`."""
        counts = [len(rows) for rows in boxes]
        embeddings = torch.cat(queries)
        regions = pool_without_padding(self.pool, features, boxes)
        objects = self.query_mapper(embeddings)
        for step, layers in enumerate(self.query_layers):
            assert self.box_encoder is not None
            regions = self.box_encoder(step, regions, embeddings)
            for layer in layers:  # pyright: ignore[reportGeneralTypeIssues]
                objects = layer(objects, regions, embeddings, counts)
        logits = (self.mask_head or dot_product)(regions, objects)
        if self.mask_bias is not None:
            logits = logits + self.mask_bias(objects).float()[:, :, None]
        iou = self.scoring(logits, regions).float() if self.scoring is not None else None
        return HeadOutput(mask_logits=logits, iou=iou)

    def pool(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features inside each box on F = neck(C1) + interpolate(image encoder(E)) (eq. 3 and 5). "m hidden r r"

        The features are without padding: see `pool_without_padding`.
        """
        levels = [features.maps[name] for name in self.encoder]
        if self.image_encoder is not None:
            levels = self.image_encoder(levels)
        sources = [(levels[0], self.strides[self.finest])]
        if self.with_c1:
            c1 = to_width(features.c1, levels[0].shape[1]) if self.neck is None else self.neck(features.c1)
            sources.insert(0, (c1, self.strides["c1"]))
        if self.region_mapper is not None:
            # The mapper is linear, so it may come before the sum and before RoIAlign: fewer channels to pool.
            mapper = self.region_mapper
            sources = [(mapper(source, bias=i == 0), stride) for i, (source, stride) in enumerate(sources)]
        pixels = boxes_in_pixels(features, boxes)
        regions = roi_align(sources, pixels, self.config.roi, sampling_ratio=self.config.sampling_ratio)
        return F.dropout2d(regions, self.config.dropout, self.training)


def _common_width(widths: Widths, encoder: tuple[str, ...]) -> int:
    """The channels that all encoder maps have."""
    channels = [widths.channels[name] for name in encoder]
    if len(set(channels)) > 1:
        found = ", ".join(f"{name} {count}" for name, count in zip(encoder, channels, strict=True))
        raise PipelineError(
            f"the encoder maps differ in channels: {found}", "this head needs maps of one width, as DETR encoders give"
        )
    return channels[0]
