"""Deformable DETR's layers, shared by H-DETR and DINO: attention, encoder, proposals, decoder layer.

Post-norm, ReLU, no dropout; names as in the official checkpoints. Where the two detectors differ, the caller says so.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.ms_deform_attn import ms_deform_attn
from .positions import Pyramid, map_positions, shrink_mask


class DeformableAttention(nn.Module):
    """Attention of queries to a few sampled points of several maps (Deformable DETR, eq. 3)."""

    def __init__(self, width: int, levels: int, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self._reset()

    def _reset(self) -> None:
        """Offsets start as rings: head m looks in direction m, point p at distance p + 1 (Deformable DETR, A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1)[:, None]
        ring = direction[:, None, None] * distance[None, None]  # "m 1 p 2"
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        tokens: Tensor,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """What each query finds around its reference. Returns "b q c".

        queries: "b q c", content plus position. tokens: "b s c", all levels one after the other.
        references: in 0-1 of each level: points (x, y) "b q l 2", around which offsets count in cells, or boxes cxcywh
        "b q l 4", in which the ring of the last point reaches half the box. b may be 1.
        padding: True where a token is padding and reads as zero, "b s".
        """
        b, q, _ = queries.shape
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        offsets = self.sampling_offsets(queries).view(b, q, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(queries).view(b, q, self.heads, self.levels * self.points).softmax(-1)
        # Sampling positions in float32: in half precision they would be off by whole cells on large maps.
        references, offsets = references[:, :, None, :, None].float(), offsets.float()
        if references.shape[-1] == 2:
            sizes = torch.tensor([(w, h) for h, w in shapes], dtype=references.dtype)
            sizes = sizes.to(references.device, non_blocking=True)  # no layer waits for a GPU to come so far
            locations = references + offsets / sizes[:, None]
        else:
            locations = references[..., :2] + offsets / self.points * references[..., 2:] * 0.5
        mixed = ms_deform_attn(
            value.unflatten(2, (self.heads, -1)),
            shapes,
            locations,
            weights.view(b, q, self.heads, self.levels, self.points),
        )
        return self.output_proj(mixed)


class EncoderLayer(nn.Module):
    """Every token looks at all levels, then a feed-forward."""

    def __init__(self, width: int, levels: int, heads: int, points: int, feed_forward: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, levels, heads, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, positions: Tensor, references: Tensor, pyramid: Pyramid) -> Tensor:
        """ "b s c" -> "b s c"."""
        found = self.self_attn(tokens + positions, tokens, references, pyramid.shapes, pyramid.padding)
        tokens = self.norm1(tokens + found)
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the memory, then a feed-forward."""

    def __init__(self, width: int, levels: int, heads: int, points: int, feed_forward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)  # the official numbers: 2 follows the self-attention, 1 the cross-attention
        self.cross_attn = DeformableAttention(width, levels, heads, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Tensor,
        pyramid: Pyramid,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """ "b q c" -> "b q c"; references "b q l 4" in 0-1 of each padded map.

        blocked: where self-attention may not look, True, bool "q q".
        """
        asking = queries + positions
        heard = self.self_attn(asking, asking, queries, attn_mask=blocked, need_weights=False)[0]
        queries = self.norm2(queries + heard)
        found = self.cross_attn(queries + positions, memory, references, pyramid.shapes, pyramid.padding)
        queries = self.norm1(queries + found)
        return self.norm3(queries + self.linear2(F.relu(self.linear1(queries))))


class FeatureEncoder(nn.Module):
    """Backbone maps -> pyramid of tokens -> encoder memory."""

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int,
        levels: int,
        layers: int,
        heads: int,
        points: int,
        feed_forward: int,
        temperature: float,
        offset: float,
    ) -> None:
        """channels: of the maps, fine to coarse; levels: one more. temperature, offset: see `map_positions`."""
        super().__init__()
        self.temperature, self.offset = temperature, offset
        sources = [nn.Conv2d(c, width, 1) for c in channels]
        for _ in range(
            levels - len(channels)
        ):  # the coarsest level comes from the raw last map, not from its projection
            sources.append(nn.Conv2d(channels[-1], width, 3, stride=2, padding=1))
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, width)) for conv in sources)
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        self.layers = nn.ModuleList(EncoderLayer(width, levels, heads, points, feed_forward) for _ in range(layers))

    def pyramid(self, maps: Sequence[Tensor], padding: Tensor) -> tuple[Tensor, Tensor, Pyramid]:
        """Backbone maps "b c h w", padding mask of the images "b H W" -> tokens, their positions, where they lie."""
        levels = [proj(maps[min(i, len(maps) - 1)]).float() for i, proj in enumerate(self.input_proj)]
        masks = [shrink_mask(padding, (level.shape[2], level.shape[3])) for level in levels]
        channels = levels[0].shape[1] // 2
        positions = [
            map_positions(mask, channels, temperature=self.temperature, offset=self.offset) + embed
            for mask, embed in zip(masks, self.level_embed, strict=True)
        ]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        return tokens, torch.cat(positions, dim=1), Pyramid.of_masks(masks)

    def forward(self, tokens: Tensor, positions: Tensor, pyramid: Pyramid) -> list[Tensor]:
        """The tokens after each layer, "b s c"; the last is the memory."""
        references, outputs = pyramid.references(), list[Tensor]()
        for layer in self.layers:
            tokens = layer(tokens, positions, references, pyramid)
            outputs.append(tokens)
        return outputs


class MLP(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """ "... c" -> "... d"."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ProposalHead(nn.Module):
    """The first stage: class logits and a box for every token of the memory."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.enc_output = nn.Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, classes)
        self.bbox_embed = MLP([width, width, width, 4])

    def forward(self, memory: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Class logits "b s k" and box logits (cxcywh before sigmoid) "b s 4"; +inf where no proposal can be."""
        anchors, invalid = pyramid.proposals()
        memory = self.enc_output_norm(self.enc_output(memory.masked_fill(invalid[..., None], 0)))
        return self.class_embed(memory), self.bbox_embed(memory) + anchors
