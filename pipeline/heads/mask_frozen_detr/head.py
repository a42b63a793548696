"""Mask Frozen-DETR: encoder maps and C1 -> F -> RoIAlign -> box encoder x query encoder -> mask logits (figure 7)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...detectors.base import Features
from ...ops.roi_align import roi_align
from ..base import HeadOutput, MaskHead, Widths, boxes_in_pixels, pool_without_padding
from .box_encoder import DeformableBoxEncoder, UnetBoxEncoder
from .config import HeadConfig
from .image_encoder import DeformableImageEncoder
from .mask_scoring import MaskScoring
from .query_encoder import build_query_layer


class MaskFrozenDetr(MaskHead):
    """The paper's head at the widths of any detector. `config` chooses the parts, `widths` come from the cache."""

    def __init__(self, config: HeadConfig, widths: Widths) -> None:
        super().__init__()
        self.config = config
        width = {widths.channels[name] for name in widths.encoder}.pop()
        if any(widths.channels[name] != width for name in widths.encoder):
            raise ValueError(f"encoder maps differ in channels: {widths.channels}")
        self.strides = widths.strides
        self.finest = widths.encoder[0]
        hidden = config.hidden
        self.image_encoder = (
            DeformableImageEncoder(width, len(widths.encoder), config.image_layers, config.heads, config.points)
            if config.image_encoder == "deformable"
            else None
        )
        self.neck = (
            nn.Sequential(nn.Conv2d(widths.channels["c1"], width, 1), nn.GroupNorm(math.gcd(32, width), width))
            if config.neck
            else None
        )
        self.region_mapper = nn.Linear(width, hidden) if hidden != width else None
        self.query_mapper = nn.Linear(widths.query_dim, hidden) if hidden != widths.query_dim else nn.Identity()
        self.box_encoder = _box_encoder(config, widths.query_dim)
        steps = 0 if self.box_encoder is None else 1 if config.box_encoder == "unet" else config.box_layers
        self.query_layers = nn.ModuleList(
            nn.ModuleList(
                build_query_layer(kind, hidden, widths.query_dim, config.heads) for kind in config.query_encoder
            )
            for _ in range(steps)
        )
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
            regions = self.box_encoder.step(step, regions, embeddings)
            for layer in layers:  # pyright: ignore[reportGeneralTypeIssues]
                objects = layer(objects, regions, embeddings, counts)
        # 1 / sqrt(c) as in attention: without it the first logits are in the tens and dice has no gradient
        logits = torch.einsum("mchw,mc->mhw", regions.float(), objects.float()) / math.sqrt(regions.shape[1])
        if self.mask_bias is not None:
            logits = logits + self.mask_bias(objects).float()[:, :, None]
        iou = self.scoring(logits, regions).float() if self.scoring is not None else None
        return HeadOutput(mask_logits=logits, iou=iou)

    def pool(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features inside each box on F = neck(C1) + interpolate(image encoder(E)) (eq. 3 and 5). "m hidden r r"

        The features are without padding: see `pool_without_padding`.
        """
        levels = features.levels
        if self.image_encoder is not None:
            levels = self.image_encoder(levels)
        sources = [(levels[0], self.strides[self.finest])]
        if self.neck is not None:
            sources.insert(0, (self.neck(features.c1), self.strides["c1"]))
        # The mapper is linear, so it may come before the sum and before RoIAlign: fewer channels to pool.
        mapped = [
            (self.map_channels(source, bias=first == 0), stride) for first, (source, stride) in enumerate(sources)
        ]
        pixels = boxes_in_pixels(features, boxes)
        regions = roi_align(mapped, pixels, self.config.roi, sampling_ratio=self.config.sampling_ratio)
        return F.dropout2d(regions, self.config.dropout, self.training)

    def map_channels(self, maps: Tensor, bias: bool) -> Tensor:
        """The channel mapper on a map, "b c h w" -> "b hidden h w"; of the maps of a sum one takes the bias."""
        if self.region_mapper is None:
            return maps
        weight = self.region_mapper.weight[:, :, None, None]
        return F.conv2d(maps, weight, self.region_mapper.bias if bias else None)


def _box_encoder(config: HeadConfig, query_dim: int) -> DeformableBoxEncoder | UnetBoxEncoder | None:
    if config.box_encoder == "deformable":
        return DeformableBoxEncoder(
            config.hidden, config.roi, config.box_layers, config.heads, config.points, config.box_norm_first
        )
    if config.box_encoder == "unet":
        modulated = query_dim if config.query_modulation else None
        return UnetBoxEncoder(config.hidden, config.roi, config.box_layers, modulated)
    return None
