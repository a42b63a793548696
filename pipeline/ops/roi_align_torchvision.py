"""RoIAlign by torchvision: the upsampled sum of the levels is made first, in float32, then one call reads it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from .level import Level, output_of
from .roi_geometry import Geometry


def pool(levels: Sequence[Level], boxes: Tensor, geometry: Geometry) -> Tensor:
    """Features of each box on the sum of the levels. "m c r r"

    boxes: "m 4", xyxy in input pixels, those of image 0 first.
    """
    _, dtype = output_of([level.cells for level in levels])
    # torchvision has no bfloat16 kernel, and in half precision it would round the boxes too.
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    maps = [[one.to(exact) for one in level.maps()] for level in levels]
    if len({len(parts) for parts in maps}) > 1:  # some levels are of one size, others not
        maps = [parts if len(parts) > 1 else list(parts[0].split(1)) for parts in maps]
    together = len(maps[0]) == 1
    counts = [geometry.boxes] if together else geometry.counts
    with torch.autocast(boxes.device.type, enabled=False):
        pooled = [
            _pool(
                [parts[part] for parts in maps], rows.to(exact), geometry.counts if together else (len(rows),), geometry
            )
            for part, rows in enumerate(boxes.split(list(counts)))
        ]
    return (pooled[0] if together else torch.cat(pooled)).to(dtype)  # cat would copy


def _pool(maps: list[Tensor], boxes: Tensor, counts: tuple[int, ...], geometry: Geometry) -> Tensor:
    """Of images of one size."""
    rois = torch.cat([F.pad(rows, (1, 0), value=float(image)) for image, rows in enumerate(boxes.split(list(counts)))])
    if geometry.composite:
        grid = maps[0].shape[-2:]
        maps = [maps[0], *(F.interpolate(one, size=grid, mode="bilinear", align_corners=False) for one in maps[1:])]
        return _align(_sum([one for one in maps if one.shape[1]]), rois, geometry.strides[0], geometry)
    pairs = zip(maps, geometry.strides, strict=True)
    return _sum([_align(one, rois, stride, geometry) for one, stride in pairs if one.shape[1]])


def _sum(maps: list[Tensor]) -> Tensor:
    return sum(maps[1:], start=maps[0])


def _align(maps: Tensor, rois: Tensor, stride: float, geometry: Geometry) -> Tensor:
    r, ratio = geometry.size, geometry.sampling_ratio
    return torchvision.ops.roi_align(maps, rois, r, 1.0 / stride, ratio, aligned=geometry.aligned)
