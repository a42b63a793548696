"""RoIAlign over one or several feature maps: maps and boxes in, one r x r grid of features per box out.

One function whatever runs it: our CUDA kernel, our products of small matrices on the CPU, torchvision, or a reference
in plain PyTorch. All have the semantics of `torchvision.ops.roi_align`. Boxes stay float32 whatever the maps are:
half-precision boxes cost more accuracy than 8-bit features.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor

from ..errors import PipelineError
from . import cuda_driver, roi_align_reference, roi_align_torchvision
from .launching import TYPE_NAMES
from .level import Level
from .roi_align_cuda import MAX_SOURCES
from .roi_align_op import roi_align_op
from .roi_geometry import Geometry

SAMPLING_RATIO = 2
Upsample = Literal["bilinear", "direct"]
Backend = Literal["auto", "cuda", "cpu", "torchvision", "reference"]


class Sampling(TypedDict):
    """Where a bin looks, keywords of `roi_align` and `roi_coverage`: what is to be added must agree in both."""

    aligned: bool
    sampling_ratio: int


def roi_align(
    levels: Sequence[Level | tuple[Tensor, float]],
    boxes: Sequence[Tensor],
    size: int,
    *,
    aligned: bool = True,
    sampling_ratio: int = SAMPLING_RATIO,
    upsample: Upsample = "bilinear",
    backend: Backend = "auto",
) -> Tensor:
    """Features of every box on the sum of the maps, `C1 + interpolate(E)` of the paper's eq. (1) and (3).

    levels: `Level`s, or (map "b c h w", stride) pairs; all of c channels and b images, the finest first. The first may
        have no channels: then it only lends its grid, to which the others are upsampled.
    boxes: per image "n 4", xyxy in input pixels, float32; an image without boxes has n = 0.
    size: r, bins along each side of the grid.
    aligned: the centre of cell i is at (i + 0.5) * stride, as a convolutional map has it; False is the older
        convention, half a cell off.
    sampling_ratio: samples per bin and axis; 0 chooses ceil(box side / r) as torchvision does.
    upsample: "bilinear": coarser maps are upsampled (`align_corners=False`) to the grid of the first and sampled there;
        "direct": each map is sampled on its own grid, which is another function, and cheaper.
    backend: "auto" is "cuda" (our kernel) for tensors on a GPU that it can read, "cpu" (ours too) for those of the
        CPU, and torchvision for the rest.
    Returns "m c r r", boxes of image 0 first, m the number of all boxes, in the dtype of the first float map (float32
    where all are uint8). Its memory order is the backend's: channels-last from our kernel.
    Raises PipelineError where the arguments contradict each other or the backend cannot run here.
    """
    pyramid = [level if isinstance(level, Level) else Level(*level) for level in levels]
    if size < 1:
        raise PipelineError(f"a RoI grid of {size} x {size} bins")
    if upsample not in ("bilinear", "direct"):
        raise PipelineError(f"unknown upsample '{upsample}'", "bilinear or direct")
    _check(pyramid, boxes, composite=upsample == "bilinear")
    geometry = _geometry(pyramid, boxes, size, aligned, sampling_ratio, composite=upsample == "bilinear")
    corners = _corners(boxes)
    if backend == "auto":
        backend = _chosen(pyramid)
    match backend:
        case "torchvision":
            return roi_align_torchvision.pool(pyramid, corners, geometry)
        case "reference":
            return roi_align_reference.pool(*operands(pyramid), corners, geometry).permute(0, 3, 1, 2)
        case "cuda" | "cpu":
            reason = _no_kernel(pyramid) if backend == "cuda" else _elsewhere(pyramid, "cpu")
            if reason:
                raise PipelineError(f"RoIAlign by '{backend}' cannot run: {reason}", "backend='auto' takes what can")
            return roi_align_op(*operands(pyramid), corners, geometry).permute(0, 3, 1, 2)
        case _:
            raise PipelineError(f"unknown backend '{backend}'", "auto, cuda, cpu, torchvision or reference")


def roi_coverage(
    level: Level | tuple[Tensor, float],
    boxes: Sequence[Tensor],
    size: int,
    *,
    aligned: bool = True,
    sampling_ratio: int = SAMPLING_RATIO,
) -> Tensor:
    """`roi_align` of a map of ones on the grid of `level`, without the map: what a constant is worth in each bin.

    1 inside the image; less in bins of which samples lie more than a cell outside. "m 1 r r", float32 or as the boxes
    """
    pyramid = [level if isinstance(level, Level) else Level(*level)]
    _check(pyramid, boxes, composite=False)
    geometry = _geometry(pyramid, boxes, size, aligned, sampling_ratio, composite=False)
    return roi_align_reference.coverage(_corners(boxes), geometry)[:, None]


def operands(levels: Sequence[Level]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Cells, scales and offsets of the levels, empty tensors for scale and offset of float levels."""
    none = torch.empty(0, device=levels[0].values.device)
    scales = [none if level.scale is None else level.scale for level in levels]
    offsets = [none if level.offset is None else level.offset for level in levels]
    return [level.cells for level in levels], scales, offsets


def _chosen(levels: Sequence[Level]) -> Literal["cuda", "cpu", "torchvision"]:
    """What "auto" means for these levels."""
    if not _elsewhere(levels, "cpu"):
        return "cpu"
    return "torchvision" if _no_kernel(levels) else "cuda"


def _geometry(
    levels: Sequence[Level], boxes: Sequence[Tensor], size: int, aligned: bool, sampling_ratio: int, *, composite: bool
) -> Geometry:
    return Geometry(
        counts=tuple(len(rows) for rows in boxes),
        grids=tuple(level.grid for level in levels),
        strides=tuple(float(level.stride) for level in levels),
        size=size,
        aligned=aligned,
        sampling_ratio=sampling_ratio,
        composite=composite,
    )


def _corners(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of all images, in float32 or better. "m 4" """
    return torch.cat([rows if rows.dtype == torch.float64 else rows.float() for rows in boxes])


def _no_kernel(levels: Sequence[Level]) -> str:
    """Why our CUDA kernel cannot read these levels here, one clause; empty where it can."""
    if elsewhere := _elsewhere(levels, "cuda"):
        return cuda_driver.missing() or elsewhere
    for level in levels:
        if level.values.dtype not in TYPE_NAMES:
            return f"it does not read {level.values.dtype}"
    if len(levels) > MAX_SOURCES:
        return f"it reads at most {MAX_SOURCES} maps, these are {len(levels)}"
    return cuda_driver.missing()


def _elsewhere(levels: Sequence[Level], device: str) -> str:
    devices = {level.values.device.type for level in levels}
    return "" if devices == {device} else f"the maps are on {', '.join(sorted(devices))}"


def _check(levels: Sequence[Level], boxes: Sequence[Tensor], *, composite: bool) -> None:
    if not levels:
        raise PipelineError("RoIAlign without a map")
    first = levels[0]
    channels = {level.channels for level in levels[0 if first.channels else 1 :]}
    for level in levels:
        if len(channels) > 1 or level.images != first.images:
            found = ", ".join(f"{one.images} images x {one.channels} channels" for one in levels)
            raise PipelineError(f"maps that cannot be added: {found}")
        pairs = zip(level.grid, first.grid, strict=True)
        if composite and any(h > fine_h or w > fine_w for (h, w), (fine_h, fine_w) in pairs):
            raise PipelineError("a map has more cells than the first", "give the finest map first")
    if len(boxes) != first.images:
        raise PipelineError(f"boxes of {len(boxes)} images for maps of {first.images}")
    device = first.values.device
    for one in (*(part for level in levels for part in (level.values, level.scale, level.offset)), *boxes):
        if one is not None and one.device != device:  # a kernel would read addresses that are none to it
            raise PipelineError(f"RoIAlign of maps and boxes on {device} and {one.device}", "move them to one device")
    if any(rows.dim() != 2 or rows.shape[1] != 4 for rows in boxes):
        raise PipelineError(f"boxes must be n x 4, these are {', '.join(str(tuple(rows.shape)) for rows in boxes)}")
