"""Deformable attention against a plain loop over queries, heads, levels and points."""

import torch
from torch import Tensor

from pipeline.ops.ms_deform_attn import ms_deform_attn

SHAPES = [(5, 7), (3, 4)]


def sample(grid: Tensor, x: float, y: float) -> Tensor:
    """Bilinear value of "h w d" at (x, y) in 0-1, cell centres at half cells, zero outside."""
    h, w, d = grid.shape
    column, row = x * w - 0.5, y * h - 0.5
    left, top = int(torch.floor(torch.tensor(column))), int(torch.floor(torch.tensor(row)))
    value = torch.zeros(d, dtype=grid.dtype)
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < h and 0 <= c < w:
                value += (1 - abs(row - r)) * (1 - abs(column - c)) * grid[r, c]
    return value


def test_equals_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    b, q, heads, points, d = 2, 3, 2, 4, 5
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(b, tokens, heads, d, generator=generator, dtype=torch.float64)
    # beyond 0-1 too: samples outside the map read zero
    locations = torch.rand(b, q, heads, len(SHAPES), points, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(b, q, heads, len(SHAPES), points, generator=generator, dtype=torch.float64)
    found = ms_deform_attn(value, SHAPES, locations, weights)
    levels = value.split([h * w for h, w in SHAPES], dim=1)
    expected = torch.zeros(b, q, heads, d, dtype=torch.float64)
    for i in range(b):
        for j in range(q):
            for m in range(heads):
                for level, (h, w) in enumerate(SHAPES):
                    grid = levels[level][i, :, m].view(h, w, d)
                    for p in range(points):
                        x, y = locations[i, j, m, level, p].tolist()
                        expected[i, j, m] += weights[i, j, m, level, p] * sample(grid, x, y)
    assert torch.allclose(found, expected.flatten(2), atol=1e-12)
