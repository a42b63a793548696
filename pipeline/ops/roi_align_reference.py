"""RoIAlign in plain PyTorch, differentiable and in any float format: what every other backend is compared with.

A bin averages samples that lie on a grid, and bilinear weights are products, so RoIAlign is two small matrices per box:
out = Y F X^T, where Y "r h" holds the weight of each row in each bin and X "r w" that of each column. Upsampling is
such a pair of matrices too; a coarse level is read through the product of both.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from .level import image_cells, output_of
from .roi_geometry import Geometry

BOXES_AT_ONCE = 16  # the intermediate "n r w c" stays small
P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(run: Callable[P, R]) -> Callable[P, R]:
    """Sums stay in the format that `run` chooses."""

    @functools.wraps(run)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return run(*args, **kwargs)

    return plain


@without_autocast
def pool(cells: list[Tensor], scales: list[Tensor], offsets: list[Tensor], boxes: Tensor, geometry: Geometry) -> Tensor:
    """Features of each box on the sum of the levels. "m r r c"

    cells: per level "b h w c" (`Level.cells`). scales, offsets: per level "b c", empty for float levels.
    boxes: "m 4", xyxy in input pixels, those of image 0 first.
    """
    channels, dtype = output_of(cells)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    used = [level for level, one in enumerate(cells) if one.shape[3]]
    pooled: list[Tensor] = []
    for image, rows in enumerate(boxes.split(geometry.counts)):
        maps = [_floats(cells, scales, offsets, geometry, level, image, exact) for level in used]
        for some in rows.split(BOXES_AT_ONCE):
            matrices = [level_weights(some.to(exact), geometry, level, image) for level in used]
            parts = [torch.einsum("npy,yxc,nqx->npqc", y, one, x) for one, (y, x) in zip(maps, matrices, strict=True)]
            pooled.append(torch.stack(parts).sum(0))
    r = geometry.size
    return torch.cat([*pooled, boxes.new_zeros((0, r, r, channels), dtype=exact)]).to(dtype)


@without_autocast
def unpool(
    grad: Tensor, boxes: Tensor, geometry: Geometry, shapes: list[tuple[int, ...]], levels: list[int]
) -> list[Tensor]:
    """Gradient of `pool` for those levels, of shape "b h w c" each, from that of its result "m r r c"."""
    exact = torch.float64 if grad.dtype == torch.float64 else torch.float32
    grads = [grad.new_zeros(shapes[level], dtype=exact) for level in levels]
    starts = [sum(geometry.counts[:image]) for image in range(geometry.images)]
    for image, (start, count) in enumerate(zip(starts, geometry.counts, strict=True)):
        for first in range(start, start + count, BOXES_AT_ONCE):
            some = slice(first, min(first + BOXES_AT_ONCE, start + count))
            for level, total in zip(levels, grads, strict=True):
                y, x = level_weights(boxes[some].to(exact), geometry, level, image)
                own = image_cells(total[image : image + 1], *geometry.grids[level][image])[0]
                own += torch.einsum("npy,npqc,nqx->yxc", y, grad[some].to(exact), x)
    return grads


def coverage(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Share of each bin's samples that lie inside the image: RoIAlign of a first level of ones. "m r r" """
    found: list[Tensor] = []
    per_pixel = torch.tensor(1 / geometry.strides[0], dtype=boxes.dtype, device=boxes.device)
    options = {"bins": geometry.size, "aligned": geometry.aligned, "sampling_ratio": geometry.sampling_ratio}
    for rows, (h, w) in zip(boxes.split(geometry.counts), geometry.grids[0], strict=True):
        x0, y0, x1, y1 = (rows * per_pixel).unbind(1)
        _, down = axis_samples(y0, y1, cells=h, **options)
        _, across = axis_samples(x0, x1, cells=w, **options)
        found.append(down.sum(2)[:, :, None] * across.sum(2)[:, None, :])
    return torch.cat(found)


def level_weights(boxes: Tensor, geometry: Geometry, level: int, image: int) -> tuple[Tensor, Tensor]:
    """Y "n r h" and X "n r w": the weight of each row and column of a level in each bin of the boxes of an image."""
    read = 0 if geometry.upsampled(level) else level
    per_pixel = torch.tensor(1 / geometry.strides[read], dtype=boxes.dtype, device=boxes.device)
    found: list[Tensor] = []
    for axis, low, high in ((0, boxes[:, 1], boxes[:, 3]), (1, boxes[:, 0], boxes[:, 2])):
        cells = geometry.grids[read][image][axis]
        weights = axis_weights(
            low * per_pixel,
            high * per_pixel,
            cells=cells,
            bins=geometry.size,
            aligned=geometry.aligned,
            sampling_ratio=geometry.sampling_ratio,
        )
        if read != level:
            weights = weights @ upsampling(cells, geometry.grids[level][image][axis]).to(weights)
        found.append(weights)
    return found[0], found[1]


def axis_weights(low: Tensor, high: Tensor, *, cells: int, bins: int, aligned: bool, sampling_ratio: int) -> Tensor:
    """The weight of each cell in each bin, along one axis. "n bins cells"

    low, high: "n", ends of the boxes in cells.
    """
    at, share = axis_samples(low, high, cells=cells, bins=bins, aligned=aligned, sampling_ratio=sampling_ratio)
    lower = at.floor().long()
    fraction = at - lower
    weights = low.new_zeros((len(low), bins, cells))
    weights.scatter_add_(2, lower, (1 - fraction) * share)
    return weights.scatter_add_(2, (lower + 1).clamp(max=cells - 1), fraction * share)


def axis_samples(
    low: Tensor, high: Tensor, *, cells: int, bins: int, aligned: bool, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Where the samples lie along one axis, in cells, and the share of each in its bin: 0 outside the map.

    Both "n bins samples". low, high: "n", ends of the boxes in cells. The arithmetic is torchvision's, operation by
    operation.
    """
    half = 0.5 if aligned else 0.0
    start, length = low - half, (high - half) - (low - half)
    if not aligned:
        length = length.clamp(min=1.0)
    step = length / bins
    samples = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil().clamp(min=0)
    most = int(samples.max()) if len(samples) else 0
    sample = torch.arange(most, device=low.device, dtype=low.dtype)
    within = (sample + 0.5) * step[:, None] / samples[:, None]
    first = start[:, None] + torch.arange(bins, device=low.device, dtype=low.dtype) * step[:, None]
    at = first[:, :, None] + within[:, None, :]  # "n bins samples"
    counted = (sample < samples[:, None])[:, None, :] & (at >= -1) & (at <= cells)
    at = torch.where(counted, at, 0.0).clamp(0, cells - 1)
    return at, counted / samples.clamp(min=1)[:, None, None]


def upsampling(fine: int, coarse: int) -> Tensor:
    """Weight of each coarse cell in each fine one, as of `interpolate(mode="bilinear")`. "fine coarse" """
    at = ((torch.arange(fine, dtype=torch.float64) + 0.5) * (coarse / fine) - 0.5).clamp(0, coarse - 1)
    lower = at.floor().long()
    weights = torch.zeros(fine, coarse, dtype=torch.float64)
    rows = torch.arange(fine)
    weights[rows, lower] += 1 - (at - lower)
    weights[rows, (lower + 1).clamp(max=coarse - 1)] += at - lower
    return weights


def _floats(
    cells: list[Tensor],
    scales: list[Tensor],
    offsets: list[Tensor],
    geometry: Geometry,
    level: int,
    image: int,
    dtype: torch.dtype,
) -> Tensor:
    """One image of a level without padding, in the format of the arithmetic. "h w c" """
    own = image_cells(cells[level][image : image + 1], *geometry.grids[level][image])[0].to(dtype)
    return own if cells[level].dtype != torch.uint8 else own * scales[level][image] + offsets[level][image]
