"""Mask logits from refined queries and box features: the paper's dot product, or the segmenter head of Table 14."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dot_product(regions: Tensor, objects: Tensor, *, scaled: bool) -> Tensor:
    """ "m c r r", "m c" -> logits "m r r" (eq. 4), float32; scaled: over the square root of c."""
    logits = torch.einsum("mchw,mc->mhw", regions.float(), objects.float())
    # as in attention: without it the first logits are in the tens and dice has no gradient
    return logits / math.sqrt(regions.shape[1]) if scaled else logits


class SegmenterHead(nn.Module):
    """Linear projections of both sides, normalised, and their product (after Strudel et al. 2021).

    Segmenter brings both to unit length and then normalises over its classes; instances are not a fixed set, so here
    LayerNorm on the query sets the scale of the logits instead.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width, width, bias=False)
        self.objects = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, regions: Tensor, objects: Tensor) -> Tensor:
        """ "m c r r", "m c" -> logits "m r r", float32."""
        cells = F.normalize(self.cells(regions.permute(0, 2, 3, 1)).float(), dim=-1)
        return torch.einsum("mhwc,mc->mhw", cells, self.norm(self.objects(objects)).float())
