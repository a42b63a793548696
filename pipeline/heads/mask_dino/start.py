"""Queries from the detector's detections in place of the first selection among the tokens. Ours, not the papers'."""

import torch
from torch import Tensor, nn

from ...detectors.base import Features
from ...detectors.positions import inverse_sigmoid
from ..prior import depth, label_logits
from .prediction import EPS, LayerPrediction
from .readout import Readout
from .selection import Queries

OTHERS = 0.01
"""Score of the classes that a detection does not name, as a focal loss likes a class to begin."""


class DetectorStart(nn.Module):
    """A query for each detection: content from its embedding and its label, its box.

    At first it says what the detector said, its class and all of its box, and so is matched with its object from the
    first step on; the layers learn what is to be added to that.
    """

    def __init__(self, query_dim: int, width: int) -> None:
        super().__init__()
        self.content = nn.Linear(query_dim, width)
        self.norm = nn.LayerNorm(width)
        self.class_scale = nn.Parameter(torch.tensor(1.0))
        self.mask_scale = nn.Parameter(torch.tensor(4.0))

    def forward(
        self, features: Features, pixels: Tensor, readout: Readout, labels: nn.Embedding
    ) -> tuple[Queries, LayerPrediction]:
        """All rows of the detections as queries, and what they say. pixels: mask features, "b c h w".

        A row that only fills up the batch has score 0, and says no class.
        """
        # Without the label, detections of one query with two labels would be one query twice.
        states = self.norm(self.content(features.queries.float()) + labels(features.labels))
        boxes = features.boxes.float()
        said = label_logits(features.labels, features.scores, labels.num_embeddings, others=OTHERS)
        queries = Queries(
            states,
            inverse_sigmoid(boxes, EPS),
            class_logits=self.class_scale * said,
            mask_logits=self.mask_scale * depth(boxes, (pixels.shape[2], pixels.shape[3])),
        )
        return queries, queries.said(readout(states, boxes, pixels))
