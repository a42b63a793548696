"""Deformable attention layers over one or several maps, for image tokens and for the cells of a RoI."""

import torch
from torch import Tensor, nn

from ..detectors.deformable import DeformableAttention


def cell_centres(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """(x, y) in 0-1 of the centre of every cell of a grid, row-major. float32 "(h w) 2" """
    y = (torch.arange(h, device=device) + 0.5) / h
    x = (torch.arange(w, device=device) + 0.5) / w
    return torch.stack([x.repeat(h), y.repeat_interleave(w)], dim=-1)


class FeedForward(nn.Module):
    """Linear, GELU, Linear with four times the width between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """ "... c" -> "... c"."""
        return self.reduce(nn.functional.gelu(self.expand(tokens)))


class DeformableLayer(nn.Module):
    """MSDeformAttn, LayerNorm, FFN, LayerNorm (paper, section 3.2)."""

    def __init__(self, width: int, levels: int, heads: int, points: int, norm_first: bool = False) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = DeformableAttention(width, levels, heads, points)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor | float,
        reference: Tensor,
        shapes: list[tuple[int, int]],
    ) -> Tensor:
        """ "b s c" -> "b s c"; `position` ("s c" or 0) is added to what asks, not to what is read."""
        if self.norm_first:
            normed = self.attention_norm(tokens)
            tokens = tokens + self.attention(normed + position, normed, reference, shapes)
            return tokens + self.feed_forward(self.feed_forward_norm(tokens))
        found = self.attention(tokens + position, tokens, reference, shapes)
        tokens = self.attention_norm(tokens + found)
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))
