"""Query selection: the tokens of the encoder maps that look most like an object, with the box of the mask they tell."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...detectors.positions import Pyramid, inverse_sigmoid
from .prediction import EPS, LayerPrediction
from .readout import Readout, moved, rows


@dataclass(frozen=True)
class Queries:
    """The q queries of each of b images, as a layer takes and gives them."""

    content: Tensor
    """ "b q c" """
    references: Tensor
    """Boxes cxcywh in 0-1 of the maps, before sigmoid. "b q 4" """
    class_logits: Tensor | None = None
    """Added to what each query says of its class. "b q classes"; None for nothing."""
    mask_logits: Tensor | None = None
    """Added to what each query says of its mask. "b q h w"; None for nothing."""

    def said(self, prediction: LayerPrediction) -> LayerPrediction:
        """With what is to be added."""
        classes, masks = prediction.class_logits, prediction.mask_logits
        if self.class_logits is not None:
            classes = classes + self.class_logits
        if self.mask_logits is not None and masks is not None:
            masks = masks + self.mask_logits
        return LayerPrediction(classes, prediction.boxes, masks)


@dataclass(frozen=True)
class Tokens:
    """The s tokens of each of b images: its maps one after the other, coarse to fine."""

    memory: Tensor
    """ "b s c" """
    positions: Tensor
    """Sine embedding of where each lies in its map. "b s c" """
    pyramid: Pyramid


class TokenSelection(nn.Module):
    """The first stage of Mask DINO (the first selection of DI-MaskDINO)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tokens, pixels: Tensor, readout: Readout, count: int) -> tuple[Queries, LayerPrediction]:
        """The `count` best tokens, or all where there are fewer, as queries without gradient; and what they say.

        pixels: mask features, "b c h w".
        """
        anchors, invalid = tokens.pyramid.proposals()
        projected = self.norm(self.project(tokens.memory.masked_fill(invalid[..., None], 0)))
        chosen = readout.best(projected, count)
        states = rows(projected, chosen)
        prediction = readout(states, moved(readout.box_embed, states, rows(anchors, chosen)), pixels)
        assert prediction.mask_logits is not None
        boxes = mask_boxes(prediction.mask_logits.detach())
        return Queries(states.detach().float(), inverse_sigmoid(boxes, EPS)), prediction


def mask_boxes(mask_logits: Tensor) -> Tensor:
    """Around what each mask covers, cxcywh in 0-1 of its grid. "b q h w" -> float32 "b q 4"

    The official mask2box: from the index of the first to that of the last cell, so that one cell has no width. The box
    of an empty mask is (1, 1, 0, 0), to which its numbers come there after they are cut to 0-1.
    """
    inside = mask_logits > 0
    sides: list[tuple[Tensor, Tensor]] = []
    for across in (2, 3):
        touched = inside.any(across)  # "b q w", then "b q h"
        size = touched.shape[2]
        first, last = touched.float().argmax(2), size - 1 - touched.flip(2).float().argmax(2)
        centre, side = (first + last) / (2 * size), (last - first) / size
        empty = ~touched.any(2)
        sides.append((centre.masked_fill(empty, 1), side.masked_fill(empty, 0)))
    (x, w), (y, h) = sides
    return torch.stack([x, y, w, h], dim=-1)
