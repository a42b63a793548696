"""The kernels of RoIAlign against the reference, wherever `launch` runs them."""

from dataclasses import replace

import torch
from roi_cases import Case

from pipeline.ops import cuda_driver, roi_align_cuda, roi_align_reference
from pipeline.ops.launching import Launch
from pipeline.ops.level import Level
from pipeline.ops.roi_align import operands
from pipeline.ops.roi_align_cuda import Tuning
from pipeline.ops.roi_geometry import Geometry


def geometry_of(case: Case) -> Geometry:
    return Geometry(
        counts=tuple(len(rows) for rows in case.boxes),
        grids=tuple(level.grid for level in case.levels),
        strides=tuple(level.stride for level in case.levels),
        size=case.size,
        aligned=case.options["aligned"],
        sampling_ratio=case.options["sampling_ratio"],
        composite=case.options["upsample"] == "bilinear",
    )


def check(
    case: Case, launch: Launch = cuda_driver.launch, rtol: float = 0.0, tuning: Tuning = roi_align_cuda.TUNING
) -> None:
    """Forward and both backwards against the reference. `rtol` is the rounding of the output's format."""
    cells, scales, offsets = operands(case.levels)
    geometry, boxes = geometry_of(case), torch.cat(case.boxes)
    exact = [level.float() if level.dtype.is_floating_point else level for level in cells]
    found = roi_align_cuda.pool(cells, scales, offsets, boxes, geometry, tuning=tuning, launch=launch)
    expected = roi_align_reference.pool(exact, scales, offsets, boxes, geometry)
    assert torch.allclose(found.float(), expected, atol=1e-5, rtol=rtol)
    grad = torch.linspace(-1, 1, found.numel(), device=found.device).view(found.shape).to(found.dtype)
    shapes = [tuple(level.shape) for level in cells]
    levels = [i for i, level in enumerate(cells) if level.dtype.is_floating_point and level.shape[3]]
    wanted = roi_align_reference.unpool(grad.float(), boxes, geometry, shapes, levels)
    for deterministic in (False, True):
        grads = roi_align_cuda.unpool(
            grad, boxes, geometry, shapes, levels, deterministic=deterministic, tuning=tuning, launch=launch
        )
        for one, want in zip(grads, wanted, strict=True):
            assert one.dtype == torch.float32
            assert torch.allclose(one, want, atol=1e-5 * max(1.0, want.abs().max().item()), rtol=0)


def stored(level: Level, kind: torch.dtype) -> Level:
    """The level in another format; uint8 as the cache stores it."""
    if kind != torch.uint8:
        return replace(level, values=level.values.to(kind))
    low, high = level.values.amin((2, 3)), level.values.amax((2, 3)) + 0.1
    scale = (high - low) / 255
    values = ((level.values - low[:, :, None, None]) / scale[:, :, None, None]).round().to(torch.uint8)
    return Level(values, level.stride, level.sizes, scale, low)
