"""What queries that start from detections say at first: its label, and its box as a soft mask. Both as logits."""

import torch
from torch import Tensor

from ..data.transforms import cxcywh_to_xyxy
from ..detectors.positions import inverse_sigmoid

EPS = 1e-4
"""Scores are taken to be at least so far from 0 and 1."""
FAR = 4.0
"""How many halves of a box's shorter side outside of it `depth` ends: far from its object hardly a pixel strays in."""


def label_logits(labels: Tensor, scores: Tensor, classes: int, *, others: float) -> Tensor:
    """For the label of each detection the logit of its score, for all other classes that of `others`.

    labels, scores: "... n" -> float32 "... n classes"
    """
    own = labels[..., None] == torch.arange(classes, device=labels.device)
    return inverse_sigmoid(torch.where(own, scores.float()[..., None], others), EPS)


def depth(boxes: Tensor, hw: tuple[int, int]) -> Tensor:
    """How deep in each box each cell of a grid is: 1 in the middle of its shorter side, 0 at its edge, less outside.

    boxes: cxcywh in 0-1 of what the grid spans. "b q 4" -> "b q h w"
    """
    x0, y0, x1, y1 = cxcywh_to_xyxy(boxes)[..., None].unbind(-2)
    y, x = ((torch.arange(side, device=boxes.device) + 0.5) / side for side in hw)
    # sides in cells: the view need not be square, and a box of less than a cell is taken for one
    in_y, in_x = torch.minimum(y - y0, y1 - y) * hw[0], torch.minimum(x - x0, x1 - x) * hw[1]
    half = torch.minimum((y1 - y0) * hw[0], (x1 - x0) * hw[1]).clamp(min=1) / 2
    return (torch.minimum(in_y[..., :, None], in_x[..., None, :]) / half[..., None]).clamp(min=-FAR, max=1)
