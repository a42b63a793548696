"""The paper's parameter-free baseline in its four variants (Table 1): masks before any training."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bounds import Count, CountOrZero, check_bounds
from ..detectors.base import Features
from ..ops.roi_align import roi_align
from .base import (
    HeadOutput,
    MaskHead,
    Masks,
    Widths,
    all_rows,
    boxes_in_pixels,
    encoder_maps,
    pool_without_padding,
    require_c1,
    to_width,
)


@dataclass(frozen=True)
class BaselineConfig:
    """The parameter-free baseline: query times feature."""

    encoder_layer: CountOrZero = 0
    """Which encoder layer's maps it reads, from 1; 0: those that the detector's TOML chose. Others must be in the
    cache: `extra_encoder_layers` of the detector."""
    roi_align: bool = True
    """Look at the features inside each box only; without it every query is compared with the whole image."""
    roi: Count = 32
    """Cells along each side of the RoI grid."""
    sampling_ratio: CountOrZero = 2
    """RoIAlign's samples per cell and axis; 0: as many as there are cells of the map below, box by box."""
    aligned: bool = True
    """Where RoIAlign takes the centre of a cell of the map to be: in its middle; else, as in its first version, half a
    cell off."""
    c1: bool = True
    """Add C1 to the encoder map upsampled to its size (column "1/4 feat." of Table 1)."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.roi_align and (self.sampling_ratio != type(self).sampling_ratio or not self.aligned):
            raise ValueError("sampling_ratio and aligned go with roi_align = true")


class Baseline(MaskHead):
    """q . RoIAlign(C1 + interpolate(E)), eq. (1), (3) and (4), untrained.

    The paper's maps and queries all have 256 channels. Where the widths differ, only the channels that both have count.
    """

    def __init__(self, config: BaselineConfig, widths: Widths) -> None:
        super().__init__()
        require_c1(widths, "the baseline works on its grid; name a tap 'c1' in the detector's TOML")
        self.config = config
        self.strides = widths.strides
        self.finest = encoder_maps(widths, config.encoder_layer)[0]
        self.width = min(widths.channels[self.finest], widths.query_dim)
        self.maps_read = ("c1", self.finest) if config.c1 else (self.finest,)

    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
        """See `MaskHead.forward`. Without RoIAlign "m h w", over the whole view on C1's grid; images of one size."""
        if not self.config.roi_align:
            maps = self.fused(features)
            rows = [torch.einsum("chw,nc->nhw", one, q[:, : self.width]) for one, q in zip(maps, queries, strict=True)]
            return HeadOutput(torch.cat(rows))
        regions = pool_without_padding(self.pool, features, boxes)
        return HeadOutput(torch.einsum("mchw,mc->mhw", regions, torch.cat(queries)[:, : self.width]))

    def predict(self, features: Features, counts: list[int] | None = None) -> list[Masks]:
        """See `MaskHead.predict`."""
        if self.config.roi_align:
            return super().predict(features, counts)
        found: list[Masks] = []
        for row, n in enumerate(counts or all_rows(features)):
            masks = super().predict(features.image(row), [n])[0]
            whole_view = masks.boxes.new_tensor([0.5, 0.5, 1.0, 1.0]).expand(n, 4)
            found.append(replace(masks, frames=whole_view))
        return found

    def pool(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features inside each box, "m c r r"."""
        return roi_align(
            [(self.fused(features), self.strides["c1"])],
            boxes_in_pixels(features, boxes),
            self.config.roi,
            sampling_ratio=self.config.sampling_ratio,
            aligned=self.config.aligned,
        )

    def fused(self, features: Features) -> Tensor:
        """F = C1 + interpolate(E), or interpolate(E) alone. "b c h w" """
        finest = features.map(self.finest)[:, : self.width]
        upsampled = F.interpolate(finest, size=self._grid(features), mode="bilinear", align_corners=False)
        return to_width(features.c1, self.width) + upsampled if self.config.c1 else upsampled

    def _grid(self, features: Features) -> tuple[int, int]:
        """Height and width of C1, which lends its grid where it is not added too, and then need not be there."""
        if "c1" in features.maps:
            return features.c1.shape[2], features.c1.shape[3]
        h, w = (-(-features.input_hw.amax(0) // self.strides["c1"])).tolist()
        return h, w
