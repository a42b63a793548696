"""Deformable attention against a plain loop over queries, heads, levels and points."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.ops.ms_deform_attn import by_grid_sample, by_rows, ms_deform_attn

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


@pytest.mark.parametrize("attend", [by_grid_sample, by_rows, ms_deform_attn])
def test_equals_a_plain_loop(attend: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    b, q, heads, points, d = 2, 3, 2, 4, 5
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(b, tokens, heads, d, generator=generator, dtype=torch.float64)
    # beyond 0-1 too: samples outside the map read zero
    locations = torch.rand(b, q, heads, len(SHAPES), points, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(b, q, heads, len(SHAPES), points, generator=generator, dtype=torch.float64)
    found = attend(value, SHAPES, locations, weights)
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


def test_both_ways_agree_far_outside_and_on_the_rim() -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, 35, 3, 8, generator=generator)
    rim = torch.tensor([-1e9, -3.0, -0.1, 0.0, 0.1, 1 - 0.5 / 7, 1.0, 1.1, 3.0, 1e9])
    locations = torch.cartesian_prod(rim, rim).view(1, 100, 1, 1, 1, 2).expand(2, -1, 3, 1, 2, -1)
    weights = torch.rand(2, 100, 3, 1, 2, generator=generator)
    found = by_rows(value, SHAPES[:1], locations, weights)
    torch.testing.assert_close(found, by_grid_sample(value, SHAPES[:1], locations, weights), atol=1e-5, rtol=0)


def test_training_and_half_precision_take_the_way_with_a_gradient() -> None:
    value = torch.randn(1, 47, 2, 4, requires_grad=True)
    locations = torch.rand(1, 3, 2, 2, 4, 2, requires_grad=True)
    weights = torch.rand(1, 3, 2, 2, 4, requires_grad=True)
    ms_deform_attn(value, SHAPES, locations, weights).sum().backward()
    for tensor in (value, locations, weights):
        assert tensor.grad is not None
        assert torch.count_nonzero(tensor.grad) > 0
    with torch.no_grad():
        exact = ms_deform_attn(value, SHAPES, locations, weights)
        half = ms_deform_attn(value.bfloat16(), SHAPES, locations, weights)
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)
