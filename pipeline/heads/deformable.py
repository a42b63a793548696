"""Deformable attention layers over one or several maps, for image tokens and for the cells of a RoI."""

import math

import torch
from torch import Tensor, nn

from ..ops.ms_deform_attn import ms_deform_attn


def cell_centres(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """(x, y) in 0-1 of the centre of every cell of a grid, row-major. float32 "(h w) 2" """
    y = (torch.arange(h, device=device) + 0.5) / h
    x = (torch.arange(w, device=device) + 0.5) / w
    return torch.stack([x.repeat(h), y.repeat_interleave(w)], dim=-1)


class DeformableAttention(nn.Module):
    """Deformable DETR's attention of tokens to the maps they come from."""

    def __init__(self, width: int, levels: int, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self._reset()

    def _reset(self) -> None:
        """Offsets start as rings: head m looks in direction m, point p at distance p + 1 (Deformable DETR, A.4)."""
        nn.init.zeros_(self.offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1)[:, None]
        ring = direction[:, None, None] * distance[None, None]  # "m 1 p 2"
        with torch.no_grad():
            self.offsets.bias.copy_(ring.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for projection in (self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        tokens: Tensor,
        reference: Tensor,
        shapes: list[tuple[int, int]],
    ) -> Tensor:
        """What each query finds around its reference point. Returns "b q c".

        queries: "b q c", content plus position. tokens: "b s c", all levels one after the other.
        reference: (x, y) in 0-1 of each level. "1 q l 2"
        """
        b, q, _ = queries.shape
        value = self.value(tokens)
        offsets = self.offsets(queries).view(b, q, self.heads, self.levels, self.points, 2)
        weights = self.weights(queries).view(b, q, self.heads, self.levels * self.points).softmax(-1)
        sizes = torch.tensor([(w, h) for h, w in shapes], device=queries.device, dtype=torch.float32)
        # Sampling positions in float32: in half precision they would be off by whole cells on large maps.
        locations = reference[:, :, None, :, None, :].float() + offsets.float() / sizes[None, None, None, :, None, :]
        mixed = ms_deform_attn(
            value.view(b, value.shape[1], self.heads, value.shape[2] // self.heads),
            shapes,
            locations,
            weights.view(b, q, self.heads, self.levels, self.points),
        )
        return self.output(mixed)


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

    def __init__(self, width: int, levels: int, heads: int = 8, points: int = 4, norm_first: bool = False) -> None:
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
