"""Multi-scale deformable attention: each query samples a few points of every level and mixes what it finds there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, Deformable DETR eq. (3), in plain PyTorch.

    value: "b s m d", the tokens of all levels one after the other (row-major), m heads of d channels.
    shapes: (h, w) of each of the l levels; s is the sum of h * w.
    locations: "b q m l p 2", (x, y) in 0-1 of each level; samples outside read zero.
    weights: "b q m l p", summing to one over l and p.
    Returns "b q (m d)".
    """
    b, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    grids = 2 * locations - 1
    sampled: list[Tensor] = []
    tokens = value.split([h * w for h, w in shapes], dim=1)
    for level, (h, w) in enumerate(shapes):
        maps = tokens[level].permute(0, 2, 3, 1).reshape(b * heads, channels, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).reshape(b * heads, queries, points, 2)
        sampled.append(F.grid_sample(maps, grid.to(maps.dtype), padding_mode="zeros", align_corners=False))
    samples = torch.cat(sampled, dim=3)  # "(b m) d q (l p)"
    mix = weights.transpose(1, 2).reshape(b * heads, 1, queries, len(shapes) * points)
    mixed = (samples * mix).sum(-1).view(b, heads * channels, queries)
    return mixed.transpose(1, 2)
