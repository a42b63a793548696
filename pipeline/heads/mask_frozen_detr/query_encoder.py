"""Query feature encoder: object queries adapted to masks, beside each box layer (paper section 3.4)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..deformable import FeedForward


class FeedForwardLayer(nn.Module):
    """FFN with residual and LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feed_forward = FeedForward(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, regions: Tensor, positions: Tensor, counts: list[int]) -> Tensor:
        """ "m c" -> "m c"."""
        return self.norm(queries + self.feed_forward(queries))


class BoxToObject(nn.Module):
    """Each query attends to the cells of its own box (eq. 11)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, regions: Tensor, positions: Tensor, counts: list[int]) -> Tensor:
        """ "m c", "m c r r" -> "m c"."""
        cells = regions.flatten(2).transpose(1, 2)
        found = self.attention(queries[:, None], cells, cells, need_weights=False)[0]
        return self.norm(queries + found[:, 0])


class ObjectToObject(nn.Module):
    """The queries of one image attend to each other (eq. 10); the original query tells who asks."""

    def __init__(self, width: int, query_dim: int, heads: int) -> None:
        super().__init__()
        self.position = nn.Linear(query_dim, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, regions: Tensor, positions: Tensor, counts: list[int]) -> Tensor:
        """ "m c" with the detector's queries "m d" -> "m c"; `counts` says how many queries each image has."""
        if not len(queries):
            return queries
        content = pad_sequence(list(queries.split(counts)), batch_first=True)
        asking = content + pad_sequence(list(self.position(positions).split(counts)), batch_first=True)
        lengths = torch.tensor(counts).to(queries.device, non_blocking=True)
        absent = torch.arange(content.shape[1], device=queries.device)[None] >= lengths[:, None]
        # an image without any query attends to its padding: its rows are dropped below, but NaN would reach the weights
        mask = absent & (lengths > 0)[:, None]
        found = self.attention(asking, asking, content, key_padding_mask=mask, need_weights=False)[0]
        rows = [image[:n] for image, n in zip(found, counts, strict=True)]
        return self.norm(queries + torch.cat(rows))


def build_query_layer(kind: str, width: int, query_dim: int, heads: int) -> nn.Module:
    """The layer of this name: `ffn`, `b2o` or `o2o`."""
    if kind == "ffn":
        return FeedForwardLayer(width)
    return BoxToObject(width, heads) if kind == "b2o" else ObjectToObject(width, query_dim, heads)
