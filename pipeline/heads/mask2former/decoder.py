"""Masked-attention decoder: queries look, layer by layer, at what their own mask covers of one level after the other.

Mask2Former, section 3.2. b images, q queries, c channels, s tokens of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...detectors.deformable import MLP
from ...detectors.positions import map_positions
from .start import TEMPERATURE, Start


@dataclass(frozen=True)
class Prediction:
    """What the queries say after a layer, or before the first."""

    class_logits: Tensor
    """Before softmax, "no object" last. "b q classes+1", of one image "q classes+1" """
    mask_logits: Tensor
    """On the grid of the mask features, before sigmoid. "b q h w", of one image "q h w" """


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; each with residual, then LayerNorm."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feed_forward)
        self.reduce = nn.Linear(feed_forward, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, queries: Tensor, start: Start, level: "Level", forbidden: Tensor) -> Tensor:
        """ "b q c" -> "b q c"; forbidden: True where a query may not look, bool "b q s"."""
        # A query whose mask is empty may look everywhere: softmax over nothing is not a number.
        forbidden = forbidden & ~forbidden.all(-1, keepdim=True)
        per_head = forbidden.repeat_interleave(self.cross_attention.num_heads, dim=0)
        keys = level.tokens + level.positions
        asking = queries + start.positions
        found = self.cross_attention(asking, keys, level.tokens, attn_mask=per_head, need_weights=False)[0]
        queries = self.cross_norm(queries + found)
        asking = queries + start.positions
        found = self.self_attention(asking, asking, queries, key_padding_mask=start.absent, need_weights=False)[0]
        queries = self.self_norm(queries + found)
        return self.feed_forward_norm(queries + self.reduce(F.relu(self.expand(queries))))


@dataclass(frozen=True)
class Level:
    """An encoder map as tokens."""

    tokens: Tensor
    """ "b s c" """
    positions: Tensor
    """ "1 s c" """
    hw: tuple[int, int]


class MaskedAttentionDecoder(nn.Module):
    """The layers, and the predictions before the first and after each, all through one norm and one pair of heads."""

    def __init__(
        self, channels: Sequence[int], *, width: int, heads: int, layers: int, feed_forward: int, classes: int
    ) -> None:
        """channels: of the maps, coarse to fine. classes: without "no object"."""
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(c, width, 1) if c != width else nn.Identity() for c in channels)
        self.level_embed = nn.Parameter(torch.randn(len(channels), width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feed_forward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, classes + 1)
        self.mask_embed = MLP([width, width, width, width])

    def forward(self, maps: Sequence[Tensor], pixels: Tensor, start: Start) -> list[Prediction]:
        """Predictions before the first layer and after each; the last is the result.

        maps: "b c h w" without padding, coarse to fine; with fewer layers than maps so many of them suffice.
        pixels: mask features, "b c h w".
        """
        levels = self.levels(maps)
        queries = start.content
        predictions = [self.predict(queries, pixels, start)]
        for number, layer in enumerate(self.layers):
            level = levels[number % len(levels)]
            queries = layer(queries, start, level, outside(predictions[-1].mask_logits, level.hw))
            predictions.append(self.predict(queries, pixels, start))
        return predictions

    def levels(self, maps: Sequence[Tensor]) -> list[Level]:
        """The maps as tokens, each told by its embedding; of fewer maps than embeddings, the coarsest."""
        found: list[Level] = []
        for values, project, embed in zip(maps, self.projections, self.level_embed, strict=False):
            h, w = values.shape[2:]
            tokens = project(values).flatten(2).transpose(1, 2) + embed
            whole = torch.zeros(1, h, w, dtype=torch.bool, device=values.device)
            positions = map_positions(whole, len(embed) // 2, temperature=TEMPERATURE, offset=0.0)
            found.append(Level(tokens, positions, (h, w)))
        return found

    def predict(self, queries: Tensor, pixels: Tensor, start: Start) -> Prediction:
        """Class and mask of each query as it is now, "b q c"."""
        queries = self.norm(queries)
        class_logits = self.class_embed(queries)
        mask_logits = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), pixels)
        if start.class_logits is not None:
            class_logits = class_logits + start.class_logits
        if start.mask_logits is not None:
            mask_logits = mask_logits + start.mask_logits
        return Prediction(class_logits, mask_logits)


@torch.no_grad()
def outside(mask_logits: Tensor, hw: tuple[int, int]) -> Tensor:
    """Where a mask, brought to the grid of a level, is below one half. "b q h w" -> bool "b q s" """
    return F.interpolate(mask_logits, size=hw, mode="bilinear", align_corners=False).flatten(2) < 0
