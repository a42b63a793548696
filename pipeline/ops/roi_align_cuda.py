"""The kernels of roi_align.cu and roi_align_backward.cu: their arguments, macros and grids, and their results."""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..errors import PipelineError
from . import cuda_driver
from .launching import TYPE_NAMES, Launch, vector_width
from .level import output_of
from .nvrtc import Program
from .roi_geometry import Geometry

MAX_SOURCES = 4
MAX_STATIC_SAMPLES = 4  # beyond, loops are not unrolled any more


@dataclass(frozen=True)
class Tuning:
    """What changes the speed and not the result. The defaults are guesses: no GPU has measured them yet."""

    load_bytes: int = 16
    """A thread reads so many bytes at a time of the narrowest map or gradient."""
    run: int = 8
    """Neighbouring bins of a thread: more reuse of columns, fewer threads."""
    threads: int = 128
    """In a block."""


TUNING = Tuning()


class _Source(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("image_step", ctypes.c_longlong),
        ("row_step", ctypes.c_int),
        ("cell_step", ctypes.c_int),
        ("per_pixel", ctypes.c_float),
    )


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("sources", _Source * MAX_SOURCES),
        ("boxes", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("payload", ctypes.c_void_p),
        ("boxes_count", ctypes.c_int),
        ("images", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("size", ctypes.c_int),
        ("samples", ctypes.c_int),
        ("aligned", ctypes.c_int),
        ("run", ctypes.c_int),
        ("source", ctypes.c_int),
    )


def pool(
    cells: Sequence[Tensor],
    scales: Sequence[Tensor],
    offsets: Sequence[Tensor],
    boxes: Tensor,
    geometry: Geometry,
    *,
    tuning: Tuning | None = None,
    launch: Launch = cuda_driver.launch,
) -> Tensor:
    """Features of each box on the sum of the levels, channels last. "m r r c"

    cells: per level "b h w c" (`Level.cells`). scales, offsets: per level "b c", empty for float levels.
    boxes: "m 4", xyxy in input pixels, those of image 0 first.
    """
    tuning = tuning or TUNING
    channels, dtype = output_of(cells)
    # what lends its grid alone is read as zeros, the same few bytes for every cell
    cells = [level if level.shape[3] else _zeros(level, channels, dtype) for level in cells]
    cells = [level if level.stride(3) == 1 or channels == 1 else level.contiguous() for level in cells]
    out = boxes.new_empty((geometry.boxes, geometry.size, geometry.size, channels), dtype=dtype)
    if not out.numel():
        return out
    scales, offsets = ([one.float().contiguous() for one in parts] for parts in (scales, offsets))
    corners, table = _corners(boxes), _table(geometry, boxes.device)
    vec = vector_width(channels, [*cells, out], [*scales, *offsets], load_bytes=tuning.load_bytes)
    arguments = _arguments(geometry, corners, table, out, channels, tuning)
    for source, level, scale, offset, stride in zip(
        arguments.sources, cells, scales, offsets, geometry.strides, strict=False
    ):
        source.values, source.scale, source.offset = level.data_ptr(), scale.data_ptr(), offset.data_ptr()
        _set_steps(source, level.shape, level.stride(), stride)
    types = [TYPE_NAMES[level.dtype] for level in cells]
    program = Program("roi_align.cu", _macros(geometry, types, dtype, vec))
    launch(
        program, "roi_align_forward", _blocks(geometry, channels // vec, tuning), tuning.threads, arguments, out.device
    )
    return out


def unpool(
    grad: Tensor,
    boxes: Tensor,
    geometry: Geometry,
    shapes: Sequence[Sequence[int]],
    levels: Sequence[int],
    *,
    deterministic: bool,
    tuning: Tuning | None = None,
    launch: Launch = cuda_driver.launch,
) -> list[Tensor]:
    """Gradient of `pool` for those levels, float32 of shape "b h w c" each, from that of its result "m r r c".

    shapes: of all levels. deterministic: the same bits every time, by a slower kernel.
    """
    tuning = tuning or TUNING
    channels = grad.shape[3]
    grad = grad.contiguous()
    # a gathering thread writes each cell of an image, so that only the padding must be zero before
    whole = [shapes[i][1] * shapes[i][2] == min(h * w for h, w in geometry.grids[i]) for i in levels]
    empty = [deterministic and covered and geometry.boxes > 0 for covered in whole]
    found = [
        grad.new_empty(tuple(shapes[i]), dtype=torch.float32)
        if overwritten
        else grad.new_zeros(tuple(shapes[i]), dtype=torch.float32)
        for i, overwritten in zip(levels, empty, strict=True)
    ]
    if not grad.numel() or not levels:
        return found
    corners, table = _corners(boxes), _table(geometry, boxes.device)
    vec = vector_width(channels, [grad], load_bytes=tuning.load_bytes)
    arguments = _arguments(geometry, corners, table, grad, channels, tuning)
    for level, stride in enumerate(geometry.strides):
        wanted = found[levels.index(level)] if level in levels else None
        source = arguments.sources[level]
        source.grad = wanted.data_ptr() if wanted is not None else None
        b, h, w, c = shapes[level]
        _set_steps(source, (b, h, w, c), (h * w * c, w * c, c, 1), stride)
    program = Program("roi_align_backward.cu", _macros(geometry, [], grad.dtype, vec))
    lanes = channels // vec
    if not deterministic:
        blocks = _blocks(geometry, lanes, tuning)
        launch(program, "roi_align_scatter", blocks, tuning.threads, arguments, grad.device)
        return found
    for level in levels:
        arguments.source = level
        most = max(h * w for h, w in geometry.grids[level])
        blocks = -(-most * lanes // tuning.threads), geometry.images
        launch(program, "roi_align_gather", blocks, tuning.threads, arguments, grad.device)
    return found


def _zeros(level: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """A level of zeros "b h w c" in the place of one without channels."""
    return torch.zeros(channels, dtype=dtype, device=level.device).expand(*level.shape[:3], channels)


def _macros(geometry: Geometry, types: Sequence[str], payload: torch.dtype, vec: int) -> tuple[tuple[str, str], ...]:
    samples = geometry.sampling_ratio if 0 < geometry.sampling_ratio <= MAX_STATIC_SAMPLES else 0
    named = {
        "SOURCES": str(len(geometry.strides)),
        **{f"TYPE_{i}": name for i, name in enumerate(types)},
        "PAYLOAD": TYPE_NAMES[payload],
        "VEC": str(vec),
        "SAMPLES": str(samples),
        "COMPOSITE": str(int(geometry.composite)),
    }
    return tuple(named.items())


def _arguments(
    geometry: Geometry, boxes: Tensor, table: Tensor, payload: Tensor, channels: int, tuning: Tuning
) -> _Arguments:
    return _Arguments(
        boxes=boxes.data_ptr(),
        table=table.data_ptr(),
        payload=payload.data_ptr(),
        boxes_count=geometry.boxes,
        images=geometry.images,
        channels=channels,
        size=geometry.size,
        samples=max(geometry.sampling_ratio, 0),
        aligned=int(geometry.aligned),
        run=tuning.run,
    )


def _set_steps(source: _Source, shape: Sequence[int], steps: Sequence[int], stride: float) -> None:
    """How far apart images, rows and cells of "b h w c" are; a map of one row holds rows one after the other."""
    if max(shape[1] * steps[1], shape[2] * steps[2]) >= 2**31:
        raise PipelineError(f"a map of {shape[1]} x {shape[2]} cells is too large for RoIAlign's CUDA kernel")
    source.image_step, source.cell_step = steps[0], steps[2]
    source.row_step = 0 if shape[1] == 1 else steps[1]
    source.per_pixel = 1 / stride


def _blocks(geometry: Geometry, lanes: int, tuning: Tuning) -> tuple[int, int]:
    runs = -(-geometry.size // tuning.run)
    return geometry.boxes * -(-lanes * runs * geometry.size // tuning.threads), 1


def _corners(boxes: Tensor) -> Tensor:
    return boxes.float().contiguous()


def _table(geometry: Geometry, device: torch.device) -> Tensor:
    """int32: image of each box, first box of each image and the end of all, h and w of each level and image."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _copied_table(geometry.counts, geometry.grids, device, stream)


@functools.lru_cache(maxsize=64)
def _copied_table(
    counts: tuple[int, ...], grids: tuple[tuple[tuple[int, int], ...], ...], device: torch.device, stream: int
) -> Tensor:
    """Kept, because sizes repeat; by stream, because the copy is ordered in one stream only."""
    del stream
    images = [image for image, count in enumerate(counts) for _ in range(count)]
    sides = [side for grid in grids for hw in grid for side in hw]
    table = torch.tensor([*images, *accumulate(counts, initial=0), *sides], dtype=torch.int32)
    # CUDA takes pageable memory of this size over before the call returns, so it need not be kept
    return table.to(device, non_blocking=True)
