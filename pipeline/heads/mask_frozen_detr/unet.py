"""U-shaped box feature encoder: convolutions on the RoI grid, down and up again. Ours, not the paper's."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each cell of "m c h w"; no copy when the memory is channels-last."""

    def forward(self, input: Tensor) -> Tensor:
        """ "m c h w" -> the same."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with a residual; the query may scale and shift the channels between them (FiLM)."""

    def __init__(self, width: int, query_dim: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = ChannelNorm(width)
        self.modulation = nn.Linear(query_dim, 2 * width) if query_dim else None
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = ChannelNorm(width)
        if self.modulation is not None:  # starts as no modulation at all
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, regions: Tensor, queries: Tensor) -> Tensor:
        """ "m c h w", "m d" -> "m c h w"."""
        inner = self.norm1(self.conv1(regions))
        if self.modulation is not None:
            scale, shift = self.modulation(queries)[:, :, None, None].chunk(2, dim=1)
            inner = inner * (1 + scale) + shift
        return regions + self.norm2(self.conv2(F.relu(inner)))


class UnetBoxEncoder(nn.Module):
    """A U of convolutions on the r x r grid: down to r / 2^(resolutions-1) and back, so every cell sees the whole box.

    Not in the paper. On few images it needs far fewer to learn than attention does: context inside the box is what
    decides, and convolutions bring the locality that attention must learn first.
    """

    def __init__(self, width: int, roi: int, resolutions: int, query_dim: int | None) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.position = nn.Parameter(torch.zeros(1, width, roi, roi))
        widths = [width + width * level // 2 for level in range(resolutions)]
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in itertools.pairwise(widths)
        )
        self.bottom = ConvBlock(widths[-1], query_dim)
        self.descent = nn.ModuleList(ConvBlock(fine, query_dim) for fine in widths[1:-1])
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in itertools.pairwise(widths))
        self.ascent = nn.ModuleList(ConvBlock(fine, query_dim) for fine in widths[:-1])

    def forward(self, layer: int, regions: Tensor, queries: Tensor) -> Tensor:
        """The whole U (it is one layer): "m c r r", "m d" -> "m c r r"."""
        cells = (self.norm(regions) + self.position).contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, down in enumerate(self.down):
            if level > 0:
                cells = self.descent[level - 1](cells, queries)
            skips.append(cells)
            cells = down(cells)
        cells = self.bottom(cells, queries)
        for level in reversed(range(len(self.up))):
            finer = F.interpolate(self.up[level](cells), scale_factor=2, mode="bilinear", align_corners=False)
            cells = self.ascent[level](skips[level] + finer, queries)
        return cells
