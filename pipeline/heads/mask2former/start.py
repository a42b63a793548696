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
from ..prior import depth, label_logits

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
    class_logits: Tensor | None = None
    """Added to what each query says of its class, "no object" last. "b q classes+1"; None for nothing."""
    mask_logits: Tensor | None = None
    """Added to what each query says of its mask, on the grid of the mask features. "b q h w"; None for nothing."""


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
    """A query for each detection: content from its embedding and its label, position from its box.

    At first it says what the detector said, its class and all of its box, and so is matched with its object from the
    first step on; the layers learn what is to be added to that.
    """

    def __init__(self, query_dim: int, classes: int, width: int) -> None:
        super().__init__()
        self.content = nn.Linear(query_dim, width)
        # Detections of one query with two labels would else be one query twice, which nothing could tell apart.
        self.labels = nn.Embedding(classes, width)
        self.norm = nn.LayerNorm(width)
        self.positions = MLP([2 * width, width, width])
        self.class_scale = nn.Parameter(torch.tensor(1.0))
        self.mask_scale = nn.Parameter(torch.tensor(4.0))
        self.channels, self.classes = width // 2, classes

    def forward(
        self,
        queries: Sequence[Tensor],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        scores: Sequence[Tensor],
        hw: tuple[int, int],
    ) -> Start:
        """Per image "n d", cxcywh in 0-1 of the view "n 4", "n" and, after sigmoid, "n". hw: of the mask features."""
        counts = torch.tensor([len(rows) for rows in boxes], device=boxes[0].device)
        contents = _padded([self.content(rows) + self.labels(own) for rows, own in zip(queries, labels, strict=True)])
        radians = _padded(boxes).float() * (2 * math.pi)
        positions = self.positions(sine_embedding(radians, self.channels, TEMPERATURE))
        absent = torch.arange(contents.shape[1], device=counts.device) >= counts[:, None]
        # an image without any detection asks its filling, whose rows are dropped later: no NaN may reach the weights
        said = [self.said(label, score) for label, score in zip(labels, scores, strict=True)]
        return Start(
            self.norm(contents),
            positions,
            absent & (counts > 0)[:, None],
            class_logits=self.class_scale * _padded(said),
            mask_logits=self.mask_scale * depth(_padded(boxes).float(), hw),
        )

    def said(self, labels: Tensor, scores: Tensor) -> Tensor:
        """For the label of each detection the logit of its score, 0 for all else. "n classes+1" """
        return label_logits(labels, scores, self.classes + 1, others=0.5)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Per image "n d" -> "b q d", zero beyond each image's own; at least one row, since attention asks for one."""
    padded = pad_sequence(list(rows), batch_first=True)
    return padded if padded.shape[1] else F.pad(padded, (0, 0, 0, 1))
