"""`torch.ops.featcache.roi_align`: the operator that torch.compile, autograd and autocast see, and who runs it where.

On CUDA our kernels, on the CPU products of small matrices. Autocast leaves it alone: it reads any mix of formats and
sums in float32. Its gradient is an operator too, and its own gradient is RoIAlign again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import roi_align_cpu, roi_align_cuda
from .level import output_of
from .roi_geometry import Geometry, grids_of

_GEOMETRY = (
    "SymInt[] counts, SymInt[] grids, float[] strides, SymInt size, bool aligned, int sampling_ratio, bool composite"
)
_LIBRARY = torch.library.Library("featcache", "DEF")
_LIBRARY.define(
    f"roi_align(Tensor[] cells, Tensor[] scales, Tensor[] offsets, Tensor boxes, {_GEOMETRY}) -> Tensor",
    tags=[torch.Tag.pt2_compliant_tag],
)
_LIBRARY.define(
    f"roi_align_backward(Tensor grad, Tensor boxes, {_GEOMETRY}, SymInt[] shapes, int[] levels, bool deterministic)"
    " -> Tensor[]",
    tags=[torch.Tag.pt2_compliant_tag],
)


def roi_align_op(
    cells: list[Tensor], scales: list[Tensor], offsets: list[Tensor], boxes: Tensor, geometry: Geometry
) -> Tensor:
    """Features of each box on the sum of the levels, channels last. "m r r c"

    cells: per level "b h w c" (`Level.cells`). scales, offsets: per level "b c", empty for float levels.
    boxes: "m 4", xyxy in input pixels, those of image 0 first.
    """
    return torch.ops.featcache.roi_align(cells, scales, offsets, boxes, *flat_geometry(geometry))


def flat_geometry(geometry: Geometry) -> tuple[Any, ...]:
    """The last arguments of the operators."""
    g = geometry
    return list(g.counts), g.flat_grids(), list(g.strides), g.size, g.aligned, g.sampling_ratio, g.composite


def _geometry(
    counts: Sequence[int], grids: Sequence[int], strides: Sequence[float], size: int, *options: Any
) -> Geometry:
    return Geometry(tuple(counts), grids_of(grids, len(strides)), tuple(strides), size, *options)


@torch.library.register_fake("featcache::roi_align", lib=_LIBRARY)
def _fake(cells: list[Tensor], scales: list[Tensor], offsets: list[Tensor], boxes: Tensor, *geometry: Any) -> Tensor:
    del scales, offsets
    size = geometry[3]
    channels, dtype = output_of(cells)
    return boxes.new_empty((boxes.shape[0], size, size, channels), dtype=dtype)


@torch.library.register_fake("featcache::roi_align_backward", lib=_LIBRARY)
def _fake_backward(grad: Tensor, boxes: Tensor, *rest: Any) -> list[Tensor]:
    del boxes
    *_, shapes, levels, _ = rest
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return [grad.new_empty(tuple(shapes[4 * level : 4 * level + 4]), dtype=dtype) for level in levels]


def _forward_on(module: Any) -> Any:
    def forward(
        cells: list[Tensor], scales: list[Tensor], offsets: list[Tensor], boxes: Tensor, *geometry: Any
    ) -> Tensor:
        return module.pool(cells, scales, offsets, boxes, _geometry(*geometry))

    return forward


def _shapes(flat: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(flat[i : i + 4]) for i in range(0, len(flat), 4)]


def _backward_cpu(grad: Tensor, boxes: Tensor, *rest: Any) -> list[Tensor]:
    *geometry, shapes, levels, _ = rest
    return roi_align_cpu.unpool(grad, boxes, _geometry(*geometry), _shapes(shapes), levels)


def _backward_cuda(grad: Tensor, boxes: Tensor, *rest: Any) -> list[Tensor]:
    *geometry, shapes, levels, deterministic = rest
    return roi_align_cuda.unpool(
        grad, boxes, _geometry(*geometry), _shapes(shapes), levels, deterministic=deterministic
    )


_LIBRARY.impl("roi_align", _forward_on(roi_align_cpu), "CPU")
_LIBRARY.impl("roi_align", _forward_on(roi_align_cuda), "CUDA")
_LIBRARY.impl("roi_align_backward", _backward_cpu, "CPU")
_LIBRARY.impl("roi_align_backward", _backward_cuda, "CUDA")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    cells, _, _, boxes, *geometry = inputs
    ctx.save_for_backward(boxes)  # RoIAlign is linear: the maps themselves are not needed
    ctx.geometry = geometry
    ctx.shapes = [side for level in cells for side in level.shape]
    ctx.dtypes = [level.dtype for level in cells]
    ctx.levels = [i for i, level in enumerate(cells) if level.requires_grad and level.shape[3]]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads: list[Tensor | None] = [None] * len(ctx.dtypes)
    if ctx.levels:
        found = torch.ops.featcache.roi_align_backward(
            grad, boxes, *ctx.geometry, ctx.shapes, ctx.levels, deterministic
        )
        for level, one in zip(ctx.levels, found, strict=True):
            grads[level] = one.to(ctx.dtypes[level])
    nothing = [None] * len(ctx.dtypes)
    return grads, nothing, nothing, None, *[None] * len(ctx.geometry)


torch.library.register_autograd("featcache::roi_align", _backward, setup_context=_setup, lib=_LIBRARY)


def _setup_again(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    del output
    grad, boxes, *geometry, shapes, levels, _ = inputs
    ctx.save_for_backward(boxes)
    ctx.geometry, ctx.shapes, ctx.levels, ctx.dtype = geometry, _shapes(shapes), levels, grad.dtype


def _backward_again(ctx: Any, found: list[Tensor | None]) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    given = dict(zip(ctx.levels, found, strict=True))
    exact = torch.float64 if ctx.dtype == torch.float64 else torch.float32
    cells: list[Tensor] = []
    for level, shape in enumerate(ctx.shapes):
        one = given.get(level)
        cells.append(boxes.new_zeros(shape, dtype=exact) if one is None else one)
    none = [boxes.new_empty(0)] * len(cells)
    again = torch.ops.featcache.roi_align(cells, none, none, boxes, *ctx.geometry)
    return again.to(ctx.dtype), None, *[None] * len(ctx.geometry), None, None, None


torch.library.register_autograd(
    "featcache::roi_align_backward", _backward_again, setup_context=_setup_again, lib=_LIBRARY
)
