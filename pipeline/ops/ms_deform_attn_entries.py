"""What the points of deformable attention read, written down as the entries of one sparse matrix.

A query and head is a row of the matrix, a cell and head a column; each point has four entries in its row: its weight
times the bilinear parts of the cells around it. The columns count in a table of the values in which each level stands
in a rim of zeros, so that every point has four cells wherever it lies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIM = 2
"""Rows of zeros above and below a level, columns between its rows."""
POINTS_AT_ONCE = 1 << 20
"""Images are taken together up to so many points: a backward pass needs about a hundred bytes for each."""

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Entries:
    """The entries of some rows of the matrix: n queries and heads, k points of all levels each."""

    columns: Tensor
    """Rows of the table that are read: top left of all points, then top right, bottom left, bottom right. "n (4 k)" """
    weights: Tensor
    """Of each point. "n k" """
    x: Tensor
    """How far right of its left cells a point lies, 0 to 1. "n k" """
    y: Tensor
    """How far below its upper cells. "n k" """

    def values(self) -> Tensor:
        """The entries themselves. "n (4 k)" """
        bottom = self.weights * self.y
        top = self.weights - bottom
        top_right, bottom_right = top * self.x, bottom * self.x
        return torch.cat([top - top_right, top_right, bottom - bottom_right, bottom_right], dim=1)

    def derivatives(self, grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, y and weights, "n k" each, from those of the entries "n (4 k)"."""
        top_left, top_right, bottom_left, bottom_right = grads.view(len(grads), 4, -1).unbind(1)
        across_top, across_bottom = top_right - top_left, bottom_right - bottom_left
        top = torch.addcmul(top_left, self.x, across_top)
        down = torch.addcmul(bottom_left, self.x, across_bottom).sub_(top)
        across = torch.lerp(across_top, across_bottom, self.y)
        return across.mul_(self.weights), down * self.weights, torch.addcmul(top, self.y, down)


def groups(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Entries]]:
    """Table "rows d" of the cells of some images and the entries of their queries, image after image."""
    exact = exact_type(value)
    images = max(1, POINTS_AT_ONCE // max(1, weights.shape[1:].numel()))
    for some in zip(*(one.split(images) for one in (value, locations, weights)), strict=True):
        yield with_rim(some[0], shapes).flatten(0, 1), _entries(shapes, some[1].to(exact), some[2].to(exact))


def _entries(shapes: Shapes, locations: Tensor, weights: Tensor) -> Entries:
    b, _, m = weights.shape[:3]
    first, cells = _firsts(shapes)
    h, w = (per_level(sides, weights, locations.dtype) for sides in zip(*shapes, strict=True))
    left, x = _before(locations[..., 0], w)
    above, y = _before(locations[..., 1], h)
    steps = [m * (w + RIM) for _, w in shapes]
    down = per_level(steps, weights, torch.int32)
    origin = [m * (start + RIM) + RIM * step for start, step in zip(first, steps, strict=True)]
    integers = {"dtype": torch.int32, "device": weights.device}
    head = torch.arange(m, **integers).view(m, 1, 1)
    image = torch.arange(b, **integers).view(b, 1, 1, 1, 1) * (cells * m)
    top_left = above.mul_(down).add_(left, alpha=m).add_(image + (per_level(origin, weights, torch.int32) + head))
    top_left.clamp_(0, b * cells * m - 1)  # a place that is not a number could be anywhere
    top_left, x, y, of_points = (one.reshape(-1, down[0].numel()) for one in (top_left, x, y, weights))
    down = down[0].flatten()
    columns = torch.cat([top_left, top_left + m, top_left + down, top_left + (down + m)], dim=1)
    return Entries(columns, of_points, x, y)


def _before(coordinate: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The cell before a coordinate in 0-1 along an axis of so many cells, at most on the rim, and how far behind."""
    position = torch.mul(coordinate, cells).sub_(0.5).clamp_(min=-RIM)
    position = torch.minimum(position, cells, out=position)
    cell = position.floor()
    return cell.to(torch.int32), position.sub_(cell)


def per_level(numbers: Sequence[int], weights: Tensor, dtype: torch.dtype) -> Tensor:
    """A number of each level for every head and point, "m l p": written out, since short rows are slow."""
    return torch.tensor(numbers, dtype=dtype, device=weights.device)[:, None].expand(weights.shape[2:]).contiguous()


def _firsts(shapes: Shapes) -> tuple[list[int], int]:
    """Where each level starts in the table, in cells, and how many cells an image has there."""
    found, cells = [], 0
    for h, w in shapes:
        found.append(cells)
        cells += (h + 2 * RIM) * (w + RIM)
    return found, cells


def with_rim(value: Tensor, shapes: Shapes) -> Tensor:
    """Values "b s m d" with zeros around each level, in the format of the sums. "cells m d" """
    b, _, m, d = value.shape
    first, cells = _firsts(shapes)
    behind = max(w for _, w in shapes) + 2 * RIM  # the last point reads a row and a cell more
    table = value.new_zeros(b * cells + behind, m, d, dtype=exact_type(value))
    for start, (h, w), tokens in zip(first, shapes, value.split([h * w for h, w in shapes], dim=1), strict=True):
        _inner(table[: b * cells].view(b, cells, m, d), start, h, w).copy_(tokens.view(b, h, w, m, d))
    return table


def without_rim(table: Tensor, shapes: Shapes) -> Tensor:
    """Back from "cells m d" to "b s m d"."""
    first, cells = _firsts(shapes)
    images = table[: len(table) // cells * cells].view(-1, cells, *table.shape[1:])
    inner = [_inner(images, start, h, w).flatten(1, 2) for start, (h, w) in zip(first, shapes, strict=True)]
    return cat(inner, dim=1)


def _inner(images: Tensor, start: int, h: int, w: int) -> Tensor:
    """The cells of one level without its rim, a view. "b h w m d" """
    level = images[:, start : start + (h + 2 * RIM) * (w + RIM)].unflatten(1, (h + 2 * RIM, w + RIM))
    return level[:, RIM : RIM + h, RIM:]


def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """One after the other, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def exact_type(value: Tensor) -> torch.dtype:
    """Of all arithmetic."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32
