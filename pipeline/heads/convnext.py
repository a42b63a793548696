"""ConvNeXt layer on one feature map, or on the cells of a RoI (Liu et al. 2022; paper, section 3.2)."""

import torch
from torch import Tensor, nn

from .deformable import FeedForward


class ConvNextLayer(nn.Module):
    """Depthwise 7 x 7 convolution, LayerNorm, FFN, each channel scaled by a learned factor, and a residual."""

    def __init__(self, width: int, layer_scale: float) -> None:
        """layer_scale: where the learned factors start."""
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width)
        self.scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, maps: Tensor) -> Tensor:
        """ "b c h w" -> the same."""
        tokens = self.norm(self.depthwise(maps).permute(0, 2, 3, 1))
        return maps + (self.scale * self.feed_forward(tokens)).permute(0, 3, 1, 2)
