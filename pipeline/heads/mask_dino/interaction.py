"""De-Imbalance (DI-MaskDINO, section 3.2): selected tokens attend to each other, then the best are selected again."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...detectors.deformable import MLP
from ...detectors.positions import box_positions, inverse_sigmoid
from .prediction import EPS, LayerPrediction
from .readout import Readout, box_head, moved, rows
from .selection import Queries, Tokens


class InteractionLayer(nn.Module):
    """Self-attention, feed-forward; each with residual, then LayerNorm."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, content: Tensor, positions: Tensor) -> Tensor:
        """ "b q c" -> "b q c"."""
        asking = content + positions
        content = self.norm1(content + self.self_attn(asking, asking, content, need_weights=False)[0])
        return self.norm2(content + self.linear2(F.relu(self.linear1(content))))


class ResidualAttention(nn.Module):
    """The twice selected tokens ask all tokens for what the selections left behind (DI-MaskDINO's eq. 4).

    Absent from the released code. The equation is an attention added to what asks; that both sides carry their
    positions, and the norm after it, is ours.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, content: Tensor, positions: Tensor, tokens: Tokens) -> Tensor:
        """ "b q c" -> "b q c"."""
        memory = tokens.memory
        asking, keys = content + positions, memory + tokens.positions
        return self.norm(content + self.attention(asking, keys, memory, need_weights=False)[0])


class TokenInteraction(nn.Module):
    """The layers, the boxes that move with them, the second selection."""

    def __init__(self, width: int, *, heads: int, feed_forward: int, layers: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InteractionLayer(width, heads, feed_forward) for _ in range(layers))
        self.place = MLP([2 * width, width, width])
        self.norm = nn.LayerNorm(width)
        self.box_embed = box_head(width)
        self.residual = ResidualAttention(width, heads) if residual else None
        self._width = width

    def forward(
        self, queries: Queries, tokens: Tokens, readout: Readout, count: int
    ) -> tuple[Queries, tuple[LayerPrediction, ...]]:
        """The `count` best of the queries after the layers, with gradient, and what all say after each layer.

        Queries that come with something to add, as detections do, were chosen by the detector: all of them stay.
        """
        content, boxes = queries.content, queries.references.sigmoid()
        said: list[LayerPrediction] = []
        for layer in self.layers:
            boxes = boxes.detach()
            with torch.autocast(content.device.type, enabled=False):
                content = layer(content, self.place(box_positions(boxes, self._width)))
            boxes = moved(self.box_embed, content, inverse_sigmoid(boxes, EPS))
            # As in the official code: what the layer says of its box starts from the box that it already moved, and
            # its class goes through two norms.
            normed = self.norm(content)
            told = moved(self.box_embed, normed, inverse_sigmoid(boxes, EPS))
            said.append(queries.said(readout(normed, told, None)))
        if queries.class_logits is None:
            chosen = readout.best(self.norm(content), count)
            content, boxes = rows(content, chosen), rows(boxes, chosen)
        if self.residual is not None:
            with torch.autocast(content.device.type, enabled=False):
                content = self.residual(content, self.place(box_positions(boxes, self._width)), tokens)
        return replace(queries, content=content, references=inverse_sigmoid(boxes, EPS)), tuple(said)
