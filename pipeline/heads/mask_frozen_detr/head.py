"""Mask Frozen-DETR: encoder maps and C1 -> F -> RoIAlign -> box encoder x query encoder -> mask logits (figure 7)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featcache import CacheSpec, Moments

from ...detectors.base import Features
from ...errors import PipelineError
from ...ops.roi_align import Sampling, roi_align, roi_coverage
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
from .neck import ChannelMap, cheaper_on_boxes
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
        encoder = encoder_maps(widths, config.encoder_layer)
        self.strides = widths.strides
        self.finest = encoder[0]
        self.width = width = _common_width(widths, encoder)
        self.encoder = encoder if config.image_encoder == "deformable" else encoder[:1]  # the others mix no levels
        hidden = config.hidden
        if config.image_encoder in ("deformable", "swin") and width % config.heads:
            raise PipelineError(
                f"the encoder maps have {width} channels, which heads = {config.heads} do not divide",
                "choose other heads, or image_encoder = 'convnext' or 'none'",
            )
        if config.c1:
            require_c1(widths, "choose c1 = false and neck = false, or name a tap 'c1' in the detector's TOML")
        self.with_c1 = config.c1 and widths.strides[self.finest] > widths.strides["c1"]
        self.maps_read = (*(["c1"] if self.with_c1 else []), *self.encoder)
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
        self.scoring = MaskScoring(config, widths.classes) if config.mask_scoring else None

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
        if self.mask_head is not None:
            logits = self.mask_head(regions, objects)
        else:
            logits = dot_product(regions, objects, scaled=self.config.mask_scale == "attention")
        if self.mask_bias is not None:
            logits = logits + self.mask_bias(objects).float()[:, :, None]
        iou = self.scoring(logits, regions).float() if self.scoring is not None else None
        return HeadOutput(mask_logits=logits, iou=iou)

    def maps_under_boxes(self, spec: CacheSpec, input_hw: tuple[int, int], most: int) -> frozenset[str]:
        """See `MaskHead.maps_under_boxes`: C1 where it surely is pooled first and the neck's statistics are stored.

        What `auto` compares grows with cells and boxes in proportion, and only images of one size are pooled together:
        what holds for one such image without a box, and with `most`, holds for any number of them.
        """
        if not self.with_c1:
            return frozenset()
        c1, neck = spec.level("c1"), self.neck is not None
        cells = math.prod(-(-side // c1.stride) for side in input_hw)
        sizes = {"cells": cells, "channels": c1.channels, "neck": neck, "moments": True, "learning": True}
        sure = all(self._pools_first(bins=n * self.config.roi**2, **sizes) for n in (0, most))
        return frozenset({"c1"} if sure and (c1.moments or not neck) else ())

    def pool(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features inside each box on F = neck(C1) + interpolate(image encoder(E)) (eq. 3 and 5). "m hidden r r"

        The features are without padding: see `pool_without_padding`.
        """
        levels = [features.map(name) for name in self.encoder]
        if self.image_encoder is not None:
            levels = self.image_encoder(levels)
        encoded, mapper = levels[0], self.region_mapper
        pixels = boxes_in_pixels(features, boxes)
        local = self.with_c1 and self._is_local(features, features.c1, pixels, neck=self.neck is not None)
        # The mapper is linear, so it may come before the sum and before RoIAlign: fewer channels to pool. Or after
        # them: fewer cells to map, where boxes are few. Its bias comes with C1.
        together = self.with_c1 and not local
        later = mapper is not None and not together and self._is_local(features, encoded, pixels, neck=False)
        if mapper is not None and not later:
            encoded = mapper(encoded, bias=not self.with_c1)
        sources = [(encoded, self.strides[self.finest])]
        if self.with_c1:
            c1 = self._c1_on_map(features) if together else features.c1[:, :0]  # local: it only lends its grid
            sources.insert(0, (c1, self.strides["c1"]))
        upsample = "bilinear" if self.config.upsample == "exact" else "direct"
        regions = roi_align(sources, pixels, self.config.roi, upsample=upsample, **self._sampling)
        if later:
            assert mapper is not None
            regions = mapper(regions, bias=False)
            if not self.with_c1:
                regions = regions + mapper.bias[:, None, None] * roi_coverage(
                    sources[0], pixels, self.config.roi, **self._sampling
                ).to(regions)
        if local:
            regions = regions + self._c1_in_boxes(features, pixels)
        return F.dropout2d(regions, self.config.dropout, self.training)

    @property
    def _sampling(self) -> Sampling:
        return {"sampling_ratio": self.config.sampling_ratio, "aligned": self.config.aligned}

    def _is_local(self, features: Features, values: Tensor, boxes: list[Tensor], *, neck: bool) -> bool:
        """Whether a map is pooled first and mapped then: `neck_path`. neck: the map has to pass it too."""
        b, c, h, w = values.shape
        return self._pools_first(
            cells=b * h * w,
            bins=sum(map(len, boxes)) * self.config.roi**2,
            channels=c,
            neck=neck,
            moments="c1" in features.moments,
            learning=torch.is_grad_enabled(),
        )

    def _pools_first(self, **sizes: Any) -> bool:
        """sizes: those that `cheaper_on_boxes` asks for beside the head's own."""
        if self.config.neck_path != "auto":
            return self.config.neck_path == "local"
        samples = (self.config.sampling_ratio or 2) ** 2
        return cheaper_on_boxes(**sizes, width=self.width, hidden=self.config.hidden, samples=samples)

    def _c1_on_map(self, features: Features) -> Tensor:
        """C1 through neck and mapper. "b hidden h w" """
        if "c1" in features.partial:
            raise PipelineError("C1 was read under the boxes alone, and the neck is to work on the whole map")
        c1 = features.c1
        refined = to_width(c1, self.width) if self.neck is None else self.neck(c1)
        return refined if self.region_mapper is None else self.region_mapper(refined)

    def _c1_in_boxes(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """RoIAlign of `_c1_on_map`, worked out on the cells of the boxes' grids. "m hidden r r" """
        c1, r = (features.c1, self.strides["c1"]), self.config.roi
        regions = roi_align([c1], boxes, r, **self._sampling)
        if self.neck is None and self.region_mapper is None:
            return to_width(regions, self.width)
        coverage = roi_coverage(c1, boxes, r, **self._sampling)
        with torch.autocast(regions.device.type, enabled=False):
            channel_map = self._c1_map(features)
        return channel_map.on_regions(regions, coverage, [len(rows) for rows in boxes])

    def _c1_map(self, features: Features) -> ChannelMap:
        """Neck and mapper of each image as one linear map of C1's channels."""
        if self.neck is None:
            assert self.region_mapper is not None
            channel_map = ChannelMap.first(features.c1.shape[1], self.width, self.region_mapper.weight)
        else:
            moments = features.moments.get("c1") or Moments.stack([Moments.of(one) for one in features.c1])
            convolution, norm = self.neck
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.GroupNorm)
            channel_map = ChannelMap.of_neck(convolution, norm, moments)
        return channel_map if self.region_mapper is None else channel_map.then(self.region_mapper)


def _common_width(widths: Widths, encoder: tuple[str, ...]) -> int:
    """The channels that all encoder maps have."""
    channels = [widths.channels[name] for name in encoder]
    if len(set(channels)) > 1:
        found = ", ".join(f"{name} {count}" for name, count in zip(encoder, channels, strict=True))
        raise PipelineError(
            f"the encoder maps differ in channels: {found}", "this head needs maps of one width, as DETR encoders give"
        )
    return channels[0]
