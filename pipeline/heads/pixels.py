"""Mask features: C1 and the finest encoder map, joined by one step of a feature pyramid."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class PixelFeatures(nn.Module):
    """Norm(1x1 of C1) + encoder map enlarged, a 3x3 convolution, and a 1x1 that says what masks are told by.

    The last step of the pixel decoders of Mask2Former and Mask DINO; the steps before it are the detector's encoder.
    """

    def __init__(self, c1: int, finest: int, width: int, cells: int = 1) -> None:
        """c1, finest: channels of the two maps. cells: of the mask features along each side of a cell of C1."""
        super().__init__()
        groups = math.gcd(32, width)
        self.lateral = nn.Sequential(nn.Conv2d(c1, width, 1, bias=False), nn.GroupNorm(groups, width))
        self.finest = nn.Conv2d(finest, width, 1) if finest != width else nn.Identity()
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()
        )
        self.cells = cells
        self.output = nn.Conv2d(width, width * cells**2, 1)
        for layer in (self.lateral[0], self.smooth[0], self.output):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.output.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, c1: Tensor, finest: Tensor) -> Tensor:
        """ "b c h w" each, without padding -> "b width h w" on C1's grid, times `cells` along each side."""
        enlarged = F.interpolate(self.finest(finest), size=c1.shape[2:], mode="bilinear", align_corners=False)
        pixels = self.output(self.smooth(self.lateral(c1) + enlarged))
        return F.pixel_shuffle(pixels, self.cells) if self.cells > 1 else pixels
