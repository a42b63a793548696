"""What the queries of the masked-attention decoder are before its first layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...detectors.deformable import MLP
from ...detectors.positions import sine_embedding

TEMPERATURE = 10_000.0
"""Of the sine embeddings."""


@dataclass(frozen=True)
class Start:
    """The queries of a batch."""

    content: Tensor
    """ "b q c" """
    positions: Tensor
    """Added wherever a query asks or is asked for. "b q c" """
    absent: Tensor | None = None
    """True on rows that only fill up the batch, bool "b q"; None where there are none."""


class LearnedStart(nn.Module):
    """The same queries for every image, content and position."""

    def __init__(self, queries: int, width: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(queries, width))
        self.positions = nn.Parameter(torch.randn(queries, width))

    def forward(self, images: int) -> Start:
        """For so many images."""
        return Start(self.content.expand(images, -1, -1), self.positions.expand(images, -1, -1))


class DetectorStart(nn.Module):
    """A query for each detection: content from its embedding and its label, position from its box."""

    def __init__(self, query_dim: int, classes: int, width: int) -> None:
        super().__init__()
        self.content = nn.Linear(query_dim, width)
        # Detections of one query with two labels would else be one query twice, which nothing could tell apart.
        self.labels = nn.Embedding(classes, width)
        self.norm = nn.LayerNorm(width)
        self.positions = MLP([2 * width, width, width])
        self._channels = width // 2

    def forward(self, queries: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Start:
        """Per image "n d", cxcywh in 0-1 of the view "n 4", and "n"."""
        counts = torch.tensor([len(rows) for rows in boxes], device=boxes[0].device)
        contents = _padded([self.content(rows) + self.labels(own) for rows, own in zip(queries, labels, strict=True)])
        radians = _padded(boxes).float() * (2 * math.pi)
        positions = self.positions(sine_embedding(radians, self._channels, TEMPERATURE))
        absent = torch.arange(contents.shape[1], device=counts.device) >= counts[:, None]
        # an image without any detection asks its filling, whose rows are dropped later: no NaN may reach the weights
        return Start(self.norm(contents), positions, absent & (counts > 0)[:, None])


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Per image "n d" -> "b q d", zero beyond each image's own; at least one row, since attention asks for one."""
    padded = pad_sequence(list(rows), batch_first=True)
    return padded if padded.shape[1] else F.pad(padded, (0, 0, 0, 1))
