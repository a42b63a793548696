"""Mask DINO's decoder: DINO's layers over the encoder maps, queries that say class, box and mask after each.

b images, q queries, c channels, s tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ...detectors.deformable import MLP, DecoderLayer
from ...detectors.positions import box_positions, inverse_sigmoid
from .guiding import TokenGuidance
from .prediction import EPS, LayerPrediction
from .readout import Readout, moved, rows
from .selection import Queries, Tokens


class MaskDinoDecoder(nn.Module):
    """The layers, and what guides the tokens between the first and the second."""

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        levels: int,
        heads: int,
        points: int,
        feed_forward: int,
        guiding_tokens: int,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, levels, heads, points, feed_forward) for _ in range(layers))
        self.place = MLP([2 * width, width, width])
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and ".cross_attn." not in name:  # which has weights of its own to start from
                nn.init.xavier_uniform_(parameter)
        self.guidance = TokenGuidance(width, heads, feed_forward) if guiding_tokens else None
        self._guiding_tokens, self._width = guiding_tokens, width

    def forward(
        self,
        queries: Queries,
        tokens: Tokens,
        pixels: Tensor,
        readout: Readout,
        *,
        blocked: Tensor | None = None,
        denoising: int = 0,
        every_mask: bool = True,
    ) -> list[LayerPrediction]:
        """What the queries say before the first layer and after each; the last is the result.

        pixels: mask features, "b c h w". blocked: where self-attention may not look, True, bool "q q". denoising: how
        many of the first queries are, which guide nothing. every_mask: else only the last prediction has masks.
        """
        content, boxes = queries.content, queries.references.sigmoid()
        said = [queries.said(readout(content, boxes, pixels if every_mask else None))]
        levels = len(tokens.pyramid.shapes)
        for number, layer in enumerate(self.layers):
            # The boxes that a layer starts from get no gradient from it, but those of a second selection do.
            start = boxes.detach() if number else boxes
            with torch.autocast(content.device.type, enabled=False):
                positions = self.place(box_positions(start, self._width))
            if number == 1 and self.guidance is not None:
                best = readout.best(content[:, denoising:], self._guiding_tokens, queries.class_logits)
                mask_guides = readout.mask_embed(rows(content[:, denoising:], best))
                box_guides = rows(positions[:, denoising:], best)
                memory, pixels = self.guidance(tokens, pixels, mask_guides, box_guides)
                tokens = replace(tokens, memory=memory.float())
            with torch.autocast(content.device.type, enabled=False):
                around = start[:, :, None].expand(-1, -1, levels, -1)
                content = layer(content, positions, around, tokens.memory, tokens.pyramid, blocked)
            # DINO looks forward twice: what a layer says of its box also teaches the layer that told its start.
            normed = readout.norm(content)
            told = moved(readout.box_embed, normed, inverse_sigmoid(boxes, EPS))
            boxes = moved(readout.box_embed, content, inverse_sigmoid(start, EPS))
            last = number == len(self.layers) - 1
            said.append(queries.said(readout(normed, told, pixels if every_mask or last else None)))
        return said
