"""Balance-Aware Tokens Optimization (DI-MaskDINO, section 3.3): tokens and mask features attend to the best queries."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .selection import Tokens


class TokenGuidance(nn.Module):
    """Cross-attention from all tokens to few guiding ones, feed-forward; the finest map joins the mask features."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm2 = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.smooth = nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, width), width), nn.ReLU())

    def forward(self, tokens: Tokens, pixels: Tensor, mask_guides: Tensor, box_guides: Tensor) -> tuple[Tensor, Tensor]:
        """The memory "b s c" and the mask features "b c h w", both guided.

        mask_guides, box_guides: mask embedding and position of the guiding queries, "b g c" each. Queries guide
        tokens, not the other way round: with few of them that costs little.
        """
        asking = tokens.memory + tokens.positions
        found = self.attention(asking, mask_guides + box_guides, mask_guides, need_weights=False)[0]
        memory = self.norm1(tokens.memory + found)
        memory = self.norm2(memory + self.linear2(F.relu(self.linear1(memory))))
        finest = tokens.pyramid.split(memory)[-1]
        enlarged = F.interpolate(finest, size=pixels.shape[2:], mode="bilinear", align_corners=False)
        return memory, self.smooth(pixels + enlarged)
