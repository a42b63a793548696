"""The paper's parameter-free baseline (Table 1): masks before any training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..detectors.base import Features
from ..ops.roi_align import roi_align
from .base import HeadOutput, MaskHead, Widths, boxes_in_pixels, pool_without_padding


@dataclass(frozen=True)
class BaselineConfig:
    """The parameter-free baseline: query times pooled feature."""

    roi: int = 32
    """Cells along each side of the RoI grid."""
    c1: bool = True
    """Add C1 to the upsampled encoder map (column "1/4 feat." of Table 1)."""


class Baseline(MaskHead):
    """q . RoIAlign(C1 + interpolate(E)), eq. (1), (3) and (4), untrained.

    The paper's maps and queries all have 256 channels. Where the widths differ, only the channels that both have count.
    """

    def __init__(self, config: BaselineConfig, widths: Widths) -> None:
        super().__init__()
        self.config = config
        self.strides = widths.strides
        self.finest = widths.encoder[0]
        self.width = min(widths.channels[self.finest], widths.query_dim)

    def forward(self, features: Features, boxes: list[Tensor], queries: list[Tensor]) -> HeadOutput:
        """See `MaskHead.forward`."""
        regions = pool_without_padding(self.pool, features, boxes)
        return HeadOutput(torch.einsum("mchw,mc->mhw", regions, torch.cat(queries)[:, : self.width]))

    def pool(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features inside each box on F = C1 + interpolate(E). "m c r r" """
        sources = [(features.levels[0][:, : self.width], self.strides[self.finest])]
        if self.config.c1:
            sources.insert(0, (_to_width(features.c1, self.width), self.strides["c1"]))
        return roi_align(sources, boxes_in_pixels(features, boxes), self.config.roi)


def _to_width(maps: Tensor, width: int) -> Tensor:
    """The first `width` channels, zeros where there are fewer. "b c h w" -> "b width h w" """
    missing = max(0, width - maps.shape[1])
    return torch.nn.functional.pad(maps[:, :width], (0, 0, 0, 0, 0, missing))
